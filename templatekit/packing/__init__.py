"""Examples laid end to end without padding, each whole."""

from templatekit.packing.plain import Document, pack, pack_examples, unpack

__all__ = ["Document", "pack", "pack_examples", "unpack"]
