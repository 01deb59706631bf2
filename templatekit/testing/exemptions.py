"""Reasons why a check does not apply to a subject: each function returns the reason, or None if the check applies."""

from __future__ import annotations

from templatekit.hooks.contracts import Adapter
from templatekit.testing import oracle
from templatekit.testing.subject import Subject


def no_adapter(subject: Subject) -> str | None:
    """For checks of adapters."""
    return None if subject.checked_adapter else "no adapter is checked"


def no_template(subject: Subject) -> str | None:
    """For checks that need a template."""
    return None if subject.checked_template else "no template is checked"


def does_not_write(subject: Subject) -> str | None:
    """For checks of `to_record`."""
    writes = type(subject.adapter).to_record is not Adapter.to_record
    return None if writes else "the adapter does not write records: it has no to_record"


def one_turn(subject: Subject) -> str | None:
    """For checks of conversations."""
    return None if subject.scope.max_turns > 1 else "one turn is all that is taken"


def lossy_tokenizer(subject: Subject) -> str | None:
    """For checks that decode ids."""
    return oracle.why_lossy(subject.tokenizer)


def splits_content(subject: Subject) -> str | None:
    """For the check that counts how often texts are printed."""
    return "the template declares splits_content: true" if subject.capabilities.splits_content else None


def not_prefix_stable(subject: Subject) -> str | None:
    """For the check of prefixes."""
    return None if subject.capabilities.prefix_stable else "the template declares prefix_stable: false"


def no_separate_bos(subject: Subject) -> str | None:
    """For the check of BOS."""
    tokens = subject.tokenizer.special_tokens
    if not subject.capabilities.bos_once:
        return "the template declares bos_once: false"
    if not tokens.bos or tokens.bos == tokens.eos:
        return "the tokenizer has no BOS of its own"
    if tokens.bos in subject.template.original:
        return f"the template writes {tokens.bos} as another token"
    return None
