"""Deltas in a torch module: its weights, read and written as a checkpoint's are."""
