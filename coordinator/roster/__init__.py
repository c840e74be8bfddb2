"""Who takes part, with which keys: requests, changes, and signed rosters."""
