"""GRIP: growing pseudo-labels."""
