"""What makes a run safe to trust: the plan, its inputs and outputs, and its progress."""
