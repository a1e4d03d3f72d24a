"""What `scripts/bench` is made of; one module per step, none of them part of the package."""
