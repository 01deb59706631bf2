"""Audits a data set: reads it with an adapter, a template and a tokenizer, and reports what is wrong with it.

```
records ──row_stream──▶ AuditedRow   ──Rule.check_row──────▶ Occurrence ──FindingCounter──▶ Finding ──▶ Report
                        AuditContext ──Rule.check_template─▶ Occurrence
```

| module | content |
| --- | --- |
| `run` | `audit`, which runs all of this |
| `rule`, `rules` | a rule, and the list of all rules |
| `rules_content`, `rules_text`, `rules_training` | the functions of the rules, by subject |
| `rows`, `context` | the input of rules: a row with its samples; the facts that are the same for every row |
| `row_stream`, `row_batches`, `other_dataset`, `round_trip` | read the rows and gather the facts about each |
| `template_markers` | the texts that the template writes around fields |
| `findings`, `excerpts` | count occurrences and lengths in bounded memory; cut out the example |
| `report`, `text_report`, `html_report` | the result, as JSON, for a terminal, and as a page |
"""

from templatekit.audit.report import Finding, Report
from templatekit.audit.rule import Rule
from templatekit.audit.rules import RULES
from templatekit.audit.run import audit

__all__ = ["RULES", "Finding", "Report", "Rule", "audit"]
