"""The story of a run, and a finished run applied to other images."""
