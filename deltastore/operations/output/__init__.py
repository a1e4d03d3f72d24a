"""The small files of an output, by subject; ``operations/output_files.py`` puts them together."""
