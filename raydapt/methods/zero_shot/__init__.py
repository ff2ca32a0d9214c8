"""The frozen CLIP with its first template."""
