"""Attention for packed training: no example of a pack sees another example, and shared prefixes are computed once."""
