"""The application of the consortium: `ddm-coord`. Never imports `sites`."""
