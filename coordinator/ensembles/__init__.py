"""From what was admitted to signed ensembles."""
