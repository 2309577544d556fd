"""How good the predictions are, from sums that are computed per file and merged later.

Each metric keeps sums of a fixed size. The sums of a chunk are computed where its files are written
and kept as JSON in its record. So a chunk that is scored again replaces its sums, and one that a
resumed run skips keeps them: no row counts twice. The values are computed from the sums over all
chunks.
"""
