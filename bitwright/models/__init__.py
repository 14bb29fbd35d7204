"""One wiring per model family."""
