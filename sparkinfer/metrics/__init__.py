"""How good the predictions are, from sums that are taken per file and added up later.

Each metric keeps sums of a fixed size. The sums of a chunk are measured by whoever wrote its files
and kept with its record as JSON, so a chunk that is scored again replaces its sums and one that a
resumed run skips keeps them: no row counts twice. The values are computed from the sums over all
chunks.
"""
