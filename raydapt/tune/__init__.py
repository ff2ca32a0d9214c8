"""Sweeps over settings, with a choice that reads no label."""
