"""Ways to adapt a model to a task and answer it, each with its settings beside it."""
