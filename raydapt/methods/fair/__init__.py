"""FAIR: description anchors, crops, a learned alignment score."""
