"""Transduction: a training-free fixed point on cached features that labels all unlabelled images together."""
