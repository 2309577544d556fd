"""The package's functions as a notebook calls them."""
