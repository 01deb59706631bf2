"""How many bytes Arrow's arrays become as Python values: several rows may share one text in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def python_size(column: pa.Array) -> int:
    """The bytes of a column, with each text as often as its rows repeat it; for rare types more, but never less."""
    return _size(column) if _may_share(column.type) else int(column.nbytes)


def _may_share(kind: pa.DataType) -> bool:
    """Whether values of a type, or values within them, may share memory."""
    test = pa.types
    if test.is_dictionary(kind) or test.is_run_end_encoded(kind):
        return True
    if (
        test.is_string_view(kind)
        or test.is_binary_view(kind)
        or test.is_list_view(kind)
        or test.is_large_list_view(kind)
    ):
        return True
    return any(_may_share(kind.field(index).type) for index in range(kind.num_fields))


def _size(values: Any) -> int:
    kind, test = values.type, pa.types
    if test.is_dictionary(kind):
        own = values.dictionary
        if test.is_string(own.type) or test.is_binary(own.type) or test.is_large_string(own.type):
            return pc.sum(pc.binary_length(own).take(values.indices)).as_py() or 0
        return len(values) * python_size(own)
    if test.is_run_end_encoded(kind):
        runs = values.values.slice(values.find_physical_offset(), values.find_physical_length())
        return len(values) * python_size(runs)
    if test.is_string_view(kind) or test.is_binary_view(kind):
        lengths = np.frombuffer(values.buffers()[1], dtype=np.int32)[::4]  # each view begins with its length
        return int(lengths[values.offset : values.offset + len(values)].astype(np.int64).sum())
    if test.is_list_view(kind) or test.is_large_list_view(kind):
        return len(values) * python_size(values.values)
    if test.is_map(kind):
        start, end = values.offsets[0].as_py(), values.offsets[-1].as_py()
        return sum(python_size(part.slice(start, end - start)) for part in (values.keys, values.items))
    if test.is_struct(kind):
        return sum(map(python_size, values.flatten()))
    if test.is_list(kind) or test.is_large_list(kind) or test.is_fixed_size_list(kind):
        return python_size(values.flatten())
    return int(values.nbytes)
