"""Examples laid end to end without padding, each whole; what several begin with may be there once."""

from templatekit.packing.layout import Document, pack_examples, unpack
from templatekit.packing.plain import pack
from templatekit.packing.tree import pack_groups, pack_sharing, prefix_tree

__all__ = ["Document", "pack", "pack_examples", "pack_groups", "pack_sharing", "prefix_tree", "unpack"]
