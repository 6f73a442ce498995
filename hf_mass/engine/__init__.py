"""Running a method on tasks: progress, stopping, time limits; the public `load`, `adapt` and `solve`."""
