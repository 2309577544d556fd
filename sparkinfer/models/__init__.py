"""What runs on the accelerator; nothing here knows about Spark."""
