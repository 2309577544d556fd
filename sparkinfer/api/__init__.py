"""The package's functions, for notebooks and other programs."""
