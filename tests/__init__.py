"""The tests of sparkinfer; `tests.standalone_cluster` is imported by drivers of their own."""
