"""Sinks: where readers find what was scored."""
