"""The report of a run and the comparison of runs, from their folders alone."""
