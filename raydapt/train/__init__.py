"""Ray Train: one training loop for every method."""
