"""Tasks: losses, predictions, metrics and pictures of each kind of problem."""
