"""How models generate text: settings, a loop of our own, and transformers' for all else."""
