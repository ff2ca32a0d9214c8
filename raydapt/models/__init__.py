"""Models: the frozen CLIP and the prompts that are learned on top of it."""
