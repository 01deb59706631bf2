"""Caches samples on disk: they are tokenized once, then read from there. A stopped run continues where it ended.

```
FOLDER/prepared-3/KEY/      KEY: the hash of everything that determines the samples
    about.json              how they were made, for people
    00000000/               a shard: the samples of the records 0 to 8,191; complete, or absent
        tokens.arrow        ids, weights, row numbers: all that training reads
        texts.arrow         texts, with the origin of each character
        examples.arrow      the conversations
        part.json           which shard of which entry, counts, and size and hash of each file
    00000001/ …             the last shard holds fewer records
```

| module | what it does |
| --- | --- |
| `preparation` | goes through the shards: reads those on disk and makes the others, here or by an engine's workers |
| `key`, `code_hash` | compute the key from data, adapter, template, tokenizer, options and code |
| `missing_shards` | reads the records of the shards to be made |
| `tables`, `example_json` | samples as Arrow tables; conversations as JSON |
| `writer`, `shard` | collect batches and write them as a shard; open a shard and check it |
| `reader` | reads samples from tables |
| `sequences` | all samples as one sequence, for training |
| `folder` | the folder of the cache: lists its entries, removes them |
| `atomic_files` | shards that are complete or absent, and what says whether they are damaged |
"""
