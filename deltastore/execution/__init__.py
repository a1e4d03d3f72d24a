"""Work on chunks in several threads, and how whoever watches is told how far it is."""
