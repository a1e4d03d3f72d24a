"""What the operating system gives and refuses: paths, permissions, processes, threads, limits."""
