"""The other side of a terminal that a command believes to have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress


def parts_shown(leader: int) -> Iterator[bytes]:
    """What is written to the terminal, until nobody has it open; closes `leader`."""
    with suppress(OSError):  # so Linux reports that the other side is closed
        while part := os.read(leader, 65536):
            yield part
    os.close(leader)
