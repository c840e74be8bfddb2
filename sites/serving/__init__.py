"""A site that answers for an expert whose weights stay: bounded, counted, and logged."""
