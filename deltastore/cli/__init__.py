"""The command line: one module per command, and what they share.

``main`` is the entry point and ``group`` loads a command's module when that command is called.
Commands import the operation they call inside their function, because even ``--help`` of a
command that computes must not pay for the libraries that compute.
"""
