"""What a worker process needs, whatever engine started it."""
