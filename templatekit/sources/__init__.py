"""Sources of records: files, folders, URLs, standard input, the hub, and the data sets that ship with the package.

```
address ──Source.accepts──▶ source ──read──▶ Record | RecordError ──map_columns──▶ Record | RecordError
```

| module | purpose |
| --- | --- |
| `opening` | finds the source of an address and reads its records, with columns renamed |
| `json_records`, `json_lines`, `json_array`, `json_decoder` | JSON in every layout, strictly, in bounded memory |
| `csv_records` | CSV and TSV, every value as text |
| `arrow_records` | Parquet, Arrow, Feather |
| `datasets_records` | folders made by `save_to_disk`, data sets on the hub |
| `folders` | a folder of files of one format, or the files that match a pattern |
| `remote` | URLs, through fsspec |
| `stdin` | JSON from standard input |
| `starter` | the bundled data sets |
| `files`, `compression`, `magic` | opening local files; decompression; detecting formats by their first bytes |
| `columns` | renames columns |
| `grouping` | groups the records that make one example, where an adapter says so |
| `shuffle`, `mixing` | the order of records, of one data set and of several |

`templatekit_sources` offers these sources, as any plugin offers its own. Importing this package loads none of the
libraries that the readers need.
"""

from __future__ import annotations

from collections.abc import Iterable

from templatekit.hooks.contracts import Source
from templatekit.hooks.specs import hookimpl
from templatekit.sources.arrow_records import ArrowSource
from templatekit.sources.columns import map_columns
from templatekit.sources.csv_records import CsvSource
from templatekit.sources.datasets_records import HubSource, SavedSource
from templatekit.sources.folders import FolderSource, GlobSource
from templatekit.sources.json_records import JsonSource
from templatekit.sources.opening import find_source, open_source
from templatekit.sources.remote import RemoteSource
from templatekit.sources.starter import StarterSource
from templatekit.sources.stdin import StdinSource

__all__ = ["find_source", "map_columns", "open_source", "templatekit_sources"]


@hookimpl
def templatekit_sources() -> Iterable[Source]:
    """The built-in sources, the most specific first: the first that accepts an address reads it."""
    return [
        StarterSource(),
        StdinSource(),
        RemoteSource(),
        SavedSource(),
        FolderSource(),
        GlobSource(),
        ArrowSource(),
        CsvSource(),
        JsonSource(),
        HubSource(),
    ]
