"""raydapt adapts CLIP-like vision-language models to unlabelled image domains, on Ray."""

__version__ = "0.1.0"
