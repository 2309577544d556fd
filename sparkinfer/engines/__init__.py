"""What moves the rows: thin layers between a data source and the scorer."""
