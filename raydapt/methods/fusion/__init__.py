"""Fusion: the guarded answers of several classifiers, a transductive step, and one linear student."""
