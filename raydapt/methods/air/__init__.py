"""AiR: synthetic images judge the pseudo-labels and are learned from."""
