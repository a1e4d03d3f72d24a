"""Tokenizers: what tokens they have, and which row of one is which row of another."""
