"""Reads a whole data set with an adapter, a template and a tokenizer, and reports what is wrong with it.

| module | |
| --- | --- |
| `run` | `audit`: the whole of it |
| `rules` | the list of rules; their functions stand in `check_*` |
| `values` | what rules look at, what they answer, and the report |
| `stream` | reads the set through the pipeline; `first_rows` and `roundtrip` are what it knows beside |
| `tally` | counts what rules find; `excerpts` cuts out the example |
| `as_text`, `as_json`, `as_html` | the report for a terminal, a program, a browser |
"""

from templatekit.audit.rules import RULES
from templatekit.audit.run import audit
from templatekit.audit.values import Finding, Report, Rule

__all__ = ["RULES", "Finding", "Report", "Rule", "audit"]
