"""The task, the training loop and its callbacks."""
