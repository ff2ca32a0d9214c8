"""FPL: few pseudo-labels, the most confident images of each class."""
