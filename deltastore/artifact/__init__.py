"""One stored artifact as arrays, and the small files that travel with it."""
