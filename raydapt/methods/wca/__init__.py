"""WCA: crops against descriptions, nothing is learned."""
