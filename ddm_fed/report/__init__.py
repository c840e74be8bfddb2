"""What is known of an ensemble, a student, or a site's release, as one page to decide from."""
