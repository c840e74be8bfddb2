"""What the command lines of sites and coordinators share: options, and commands that are equal."""
