"""``config.json`` of an output and what goes with it: made to fit its tensors."""
