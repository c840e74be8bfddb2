"""What a site has spent, what it may spend, and what it does after a loss."""
