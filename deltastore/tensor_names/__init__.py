"""What is known of tensors by their names alone."""
