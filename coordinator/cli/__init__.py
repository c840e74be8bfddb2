"""The commands of `ddm-coord`."""
