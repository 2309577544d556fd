"""What would go wrong in a run, found before it: installation, cluster, input, output, model."""
