"""The heavy jobs as Ray Data stages: each makes one artefact, part by part, and goes on after a kill."""
