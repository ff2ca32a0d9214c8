"""The jobs that train the embedded miniature models; not part of the wheel, their weights are."""
