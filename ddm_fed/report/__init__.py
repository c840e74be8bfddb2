"""What is known of an ensemble, and of a site's release, as one page for people to decide from."""
