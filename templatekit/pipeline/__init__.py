"""Runs records through all stages to tokenized samples, and counts every dropped record by its reason.

```
                 Reader                Pipeline                                    outputs
record ──filter, dedup, shuffle──▶ adapt ──▶ render ──▶ encode ──▶ fit ──▶ SampleBatch ──▶ output chunk
```

| module | what it holds |
| --- | --- |
| `pipeline` | `Pipeline`: adapter, template and tokenizer in one object. Start to read here |
| `reader` | which records are read and meet the filters, and the examples that the adapter makes of each |
| `deduplication`, `first_rows` | records that are excluded because they repeat |
| `preference` | a pipeline whose samples come in pairs, for DPO |
| `mixture` | a pipeline over several data sets |
| `batches`, `chunks` | samples that are passed on together; records that are worked on together |
| `outputs` | what an exporter writes for a chunk, and observers that count batches as they pass |
| `inputs` | which files a command reads, so that nothing is written over them |
| `counts` | how many records were read, sampled, shortened and dropped |
| `garbage_collection` | a loop that Python's garbage collector interrupts rarely |
"""
