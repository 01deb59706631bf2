"""The options of commands and Python calls, with their checks, and the folder of the cache."""
