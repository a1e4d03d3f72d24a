"""Which models are kin: digests, samples, and the tensors of two checkpoints side by side."""
