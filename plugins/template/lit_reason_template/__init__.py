"""A task, a reward and a loss for lit-reason."""
