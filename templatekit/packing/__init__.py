"""Examples laid end to end without padding, each whole; what several begin with may be there once."""

from templatekit.packing.layout import Document, pack_examples, unpack
from templatekit.packing.plain import pack
from templatekit.packing.stream import Packs, Sequences, pack_arrays, packed
from templatekit.packing.tree import pack_groups, pack_sharing, prefix_tree

__all__ = [
    "Document",
    "Packs",
    "Sequences",
    "pack",
    "pack_arrays",
    "pack_examples",
    "pack_groups",
    "pack_sharing",
    "packed",
    "prefix_tree",
    "unpack",
]
