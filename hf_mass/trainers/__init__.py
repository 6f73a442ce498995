"""Meta-training on TRL's machinery: the trainer, its settings, checkpoints and evaluation."""
