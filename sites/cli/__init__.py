"""The commands of `ddm-site`."""
