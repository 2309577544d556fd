"""What only a GPU can show. Needs the core and torch, no Spark; see `tests/gpu/pytest.ini`."""
