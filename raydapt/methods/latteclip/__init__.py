"""LatteCLIP: captions feed class prototypes that teach CLIP."""
