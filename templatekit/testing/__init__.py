"""The conformance kit: checks whether a format keeps its promises, on generated records.

A `Subject` (an adapter or template with a tokenizer) is tried with every `Check`; each check is a function that raises
`Violation` on an input that breaks its promise.

| module | content |
| --- | --- |
| `runner` | `run_checks`, `parametrize_with_checks` for pytest, and `CHECKS`, the list of all checks |
| `check`, `exemptions` | a check and its outcome; reasons why a check does not apply |
| `check_execution`, `check_content`, `check_mask`, `check_control`, `check_agreement` | the checks, by property |
| `oracle` | the expected results, computed independently of the code under test |
| `subject`, `checked_record` | what is checked; one record of it after all stages, with the assertions of checks |
| `inputs`, `records`, `texts`, `tiny_tokenizers` | strategies for inputs, records and texts; tokenizers |
| `search`, `failure` | searches for the smallest failing input; describes a failure |
| `subject_lookup` | finds subjects by name or file |

It needs hypothesis, and only the command `check` imports it.
"""

from templatekit.testing.check import Check, Outcome, check
from templatekit.testing.checked_record import Violation
from templatekit.testing.records import conversations, examples, records_for
from templatekit.testing.runner import CHECKS, parametrize_with_checks, run_checks
from templatekit.testing.subject import Subject
from templatekit.testing.subject_lookup import subjects_of
from templatekit.testing.texts import adversarial_text, plain_text
from templatekit.testing.tiny_tokenizers import MAIN, TINY, tiny_tokenizer

__all__ = [
    "CHECKS",
    "MAIN",
    "TINY",
    "Check",
    "Outcome",
    "Subject",
    "Violation",
    "adversarial_text",
    "check",
    "conversations",
    "examples",
    "parametrize_with_checks",
    "plain_text",
    "records_for",
    "run_checks",
    "subjects_of",
    "tiny_tokenizer",
]
