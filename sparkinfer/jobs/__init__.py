"""What makes a run trustworthy: lease, manifest and records, commits, resuming and retries."""
