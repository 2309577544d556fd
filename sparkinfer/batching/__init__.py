"""Which rows go through the model together: pure functions over plain sequences."""
