"""Where runs and artefacts live: folders, the artefact store, fingerprints."""
