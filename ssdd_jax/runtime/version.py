"""Version of the package, as stored in the files that it writes."""

__version__ = "0.1.0"
