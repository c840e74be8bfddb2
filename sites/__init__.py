"""The application of a data owner: `ddm-site`. Never imports `coordinator`."""
