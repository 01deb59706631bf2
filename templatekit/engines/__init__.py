"""Engines: where chunks of records are worked on.

| module | what it holds |
| --- | --- |
| `jobs` | the job, what a worker needs and returns, and how this process runs chunks with or without an engine |
| `processes` | an engine of worker processes on this machine |
| `ray` | an engine of workers on a Ray cluster |
"""
