"""Training and evaluation: the loop, its state, checkpoints, run folders, optimizers."""
