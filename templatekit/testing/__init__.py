"""The conformance kit: whether a format keeps its promises, by named checks over generated records.

It needs hypothesis, and nothing else of templatekit imports it but the command `check`.
"""

from templatekit.testing.adversarial import adversarial_text, plain_text
from templatekit.testing.check import Check, Violation, check
from templatekit.testing.discovery import parametrize_with_checks, subjects_of
from templatekit.testing.records import conversations, examples, records_for
from templatekit.testing.runner import CHECKS, Outcome, run_checks
from templatekit.testing.subject import Subject
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
