"""The small files of an output, by subject; ``output/assemble.py`` puts them together."""
