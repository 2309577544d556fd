"""Rows as Arrow batches: how they are read, processed and written."""
