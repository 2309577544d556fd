"""What runs on the accelerator; nothing here knows of Spark."""
