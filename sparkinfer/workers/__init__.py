"""What a worker process needs, whatever started it."""
