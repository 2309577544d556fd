"""What sparkinfer needs from a Spark installation and asks of a Spark session."""
