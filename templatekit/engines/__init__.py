"""Engines: where chunks of records are worked on.

| module | what it holds |
| --- | --- |
| `jobs` | the job, the setup and result of a worker, and how this process runs chunks with or without an engine |
| `processes` | an engine of worker processes on this machine |
| `ray` | an engine of workers on a Ray cluster |
"""
