"""Training on TRL's machinery: the trainers, their settings, checkpoints and publishing."""
