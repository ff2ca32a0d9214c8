"""The Ray cluster: joining one, and its nodes."""
