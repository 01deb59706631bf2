"""The options of commands and Python calls, with their checks; how addresses are shown, and where files are written."""
