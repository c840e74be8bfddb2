"""A site's own work under a plan: its expert, its head, and attacks on both."""
