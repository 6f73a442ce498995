"""The designed world of the main job."""
