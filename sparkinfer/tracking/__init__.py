"""Runs in MLflow: how its server is called, and what is written there in which form."""
