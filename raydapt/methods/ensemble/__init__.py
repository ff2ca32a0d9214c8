"""The frozen CLIP with the mean of all templates."""
