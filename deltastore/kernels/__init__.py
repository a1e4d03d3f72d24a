"""Compiled loops: how they are compiled, the buffers they work in, the palette's tokens."""
