"""What is made once and kept: recipe, types and loader of each kind of artefact. `raydapt.stages` makes them."""
