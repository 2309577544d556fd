"""What a run is about to do, and the ports between a run and an engine."""
