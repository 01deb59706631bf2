"""Attention for packed training: no example of a pack sees another, and shared prefixes are computed once."""
