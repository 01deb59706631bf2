"""Packs: whole examples one after another without padding, with the prefixes that several of them share stored once.

`columns` holds tokenized examples as arrays. `bin_packing` and `tree` decide which examples go into one pack, without
and with shared prefixes. `packed_batch` builds the arrays that training reads, `stream` the packs that are written to
files.
"""

from templatekit.packing.bin_packing import pack
from templatekit.packing.packed_batch import pack_examples, segment_paths
from templatekit.packing.stream import Packs, Sequences, pack_arrays, pack_stream
from templatekit.packing.tree import pack_groups, prefix_tree

__all__ = [
    "Packs",
    "Sequences",
    "pack",
    "pack_arrays",
    "pack_examples",
    "pack_groups",
    "pack_stream",
    "prefix_tree",
    "segment_paths",
]
