"""What is known of an ensemble, a student, or a site's release, as one page for people to decide from."""
