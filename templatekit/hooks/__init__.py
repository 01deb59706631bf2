"""Plugins: the hooks, the base classes of what they offer, and the registry that loads them."""
