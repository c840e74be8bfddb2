"""The version of the program, which is not the version of any file format."""

__version__ = "0.1.0"
