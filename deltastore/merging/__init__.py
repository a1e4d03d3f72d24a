"""Base and deltas in, output tensors out: which tensor goes where, and what each is made of."""
