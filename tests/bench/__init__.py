"""Speed against the naive way, in the same run: ``make bench``."""
