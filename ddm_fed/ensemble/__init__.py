"""An ensemble: verified as a folder, loaded as one velocity, sampled as images."""
