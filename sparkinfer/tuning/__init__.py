"""Measures, on a sample of the input, which settings score it fastest."""
