"""A user's processor over a dataset, batch by batch, in ranks that commit together."""
