"""Tables to which finished chunks are appended."""
