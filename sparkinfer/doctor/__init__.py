"""Finds problems before a run: installation, cluster, input, output, model."""
