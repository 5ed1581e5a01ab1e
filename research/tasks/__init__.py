"""Tasks: losses, predictions, metrics and pictures; one module per kind of problem."""
