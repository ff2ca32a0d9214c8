"""CPL: candidate pseudo-labels."""
