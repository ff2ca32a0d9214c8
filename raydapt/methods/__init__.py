"""Methods: ways to adapt a CLIP-like model to unlabelled images, each in a file that reads like its paper."""
