"""The embedded miniature models and the jobs that train them."""
