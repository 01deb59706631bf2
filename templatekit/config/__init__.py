"""The options of commands and calls, checked, and where the package keeps its own files."""
