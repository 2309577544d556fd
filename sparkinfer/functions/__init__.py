"""A user's functions over batches of rows: what they are given, how they are called, in stages."""
