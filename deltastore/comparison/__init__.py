"""Whether deltas point the same way: sums over the elements they share, and pictures of them."""
