"""Sources of records: files, folders, URLs, standard input, the hub, and the data sets that ship with the package.

```
address ──Source.accepts──▶ source ──read──▶ Record | RecordError ──map_columns──▶ Record | RecordError
```

| module | purpose |
| --- | --- |
| `opening` | finds the source of an address and reads its records, with columns renamed |
| `builtin` | offers the sources below, as any plugin offers its own |
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

Importing this package loads none of the libraries that the readers need.
"""

from templatekit.sources.builtin import templatekit_sources
from templatekit.sources.columns import map_columns
from templatekit.sources.opening import find_source, open_source

__all__ = ["find_source", "map_columns", "open_source", "templatekit_sources"]
