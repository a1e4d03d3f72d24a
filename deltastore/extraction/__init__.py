"""Two checkpoints in, an artifact out."""
