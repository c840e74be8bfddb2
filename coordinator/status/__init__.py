"""Who is where, for people and for machines."""
