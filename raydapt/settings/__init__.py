"""Settings: types, trees, shared groups and the whole configuration."""
