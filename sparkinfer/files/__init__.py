"""Files of rows: which of them are the input, what columns they hold, and their rows as Arrow."""
