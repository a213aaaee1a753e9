"""Policy without I/O and without a clock: read-ahead, eviction, back-off, order of fetches."""
