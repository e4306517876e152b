"""Training: configuration, loop, checkpoints, validation and run folders."""
