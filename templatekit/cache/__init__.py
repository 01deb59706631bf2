"""Prepared data on disk: what was tokenized once is taken from there, and a run that was stopped goes on behind it.

```
FOLDER/prepared-1/KEY/      KEY: the hash of all that decides about the examples
    about.json              what made them, for people
    00000000/               the examples of the records 0 to 8,191: whole, or not there
        tokens.arrow        ids, weights, row numbers: all that training reads
        texts.arrow         texts, with where each character came from
        examples.arrow      the conversations
        part.json           counts, and size and hash of each file
    00000001/ …             the last part holds fewer records
```

| module | what it does |
| --- | --- |
| `key` | names what decides about the examples: data, code, template, tokenizer, options |
| `code` | hashes the code of plugins and of the package |
| `values` | conversations and origins as JSON |
| `tables`, `reader` | examples as Arrow tables, and read from there |
| `writer`, `part` | watch what is made and write it, a part at a time; open a part and check it |
| `disk` | files that are whole or absent |
| `folder` | finds the folder, lists what is in it, removes it |
| `missing` | reads what is to be made, over what is there |
| `run` | goes through the parts: takes those that are there, has the others made, here or by an engine's workers |
| `examples` | all samples as one sequence, for training |
"""

from templatekit.cache.folder import Entry, entries, remove
from templatekit.cache.preparation import prepared_batches, prepared_parts, prepared_samples
from templatekit.cache.sequences import StoredExamples, StoredSamples

__all__ = [
    "Entry",
    "StoredExamples",
    "StoredSamples",
    "entries",
    "prepared_batches",
    "prepared_parts",
    "prepared_samples",
    "remove",
]
