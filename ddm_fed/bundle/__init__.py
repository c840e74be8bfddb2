"""A bundle is what one site sends: how it is written, judged, and verified."""
