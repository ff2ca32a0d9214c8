"""Methods: ways to adapt a CLIP-like model to unlabelled images, each in a file that reads like its paper."""

from raydapt.methods.build import build_method
from raydapt.methods.contract import Batch, Method, PseudoLabels, Stream, TrainingImages

__all__ = ["Batch", "Method", "PseudoLabels", "Stream", "TrainingImages", "build_method"]
