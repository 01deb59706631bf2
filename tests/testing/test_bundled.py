"""Every bundled adapter and template keeps every promise, with every available tokenizer.

`HYPOTHESIS_PROFILE=long` tries some 20,000 inputs of each kind; the end of the run shows how many.
"""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hypothesis import settings
from testkit.at_hand import GENERATED, REAL_TOKENIZERS, Tokenizers
from testkit.budget import FULL, LONG

from templatekit import Adapter, Registry, Template, Tokenizer
from templatekit.formats.lookup import find_template
from templatekit.testing import CHECKS, TINY, Subject, run_checks, tiny_tokenizer

AT_MOST = 20_000 if LONG else 400 if FULL else 130
"""The approximate number of inputs of each kind for all formats together, so that more formats take no more time."""
IDLE = {
    "template llama3": {"agrees_with_plain_encoding"},  # its empty line straddles the boundary with most tokenizers
    "adapter text": {  # there is no question, so there is no prompt
        "prompt_is_prefix",
        "prompt_ids_are_prefix",
        "labels_begin_behind_the_prompt",
        "servers_feed_the_same_ids",
        "markers_change_no_label",
    },
    "adapter transcript": {  # its one text contains all messages, so no message can be replaced
        "texts_change_no_control_id",
        "halves_never_join",
        "markers_change_no_label",
    },
}
"""Checks for which no input of a format shows anything."""


def bundled(builtin: Registry) -> list[tuple[str, str]]:
    offers = (("adapter", builtin.adapters), ("template", builtin.templates))
    return [(kind, name) for kind, found in offers for name in found if found.owner(name).built_in]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "part" in metafunc.fixturenames:
        from templatekit import create_registry

        names = bundled(create_registry(select=()))
        metafunc.parametrize("part", names, ids=["-".join(name) for name in names])


@pytest.fixture(scope="session")
def at_hand(tokenizer_of: Tokenizers) -> list[Tokenizer]:
    """The tiny tokenizers, and the real ones that are present."""
    found = [tiny_tokenizer(name) for name in TINY]
    for name in REAL_TOKENIZERS:
        try:
            found.append(tokenizer_of(name))
        except pytest.skip.Exception:
            continue
    return found


def test_every_promise_is_kept(
    part: tuple[str, str], at_hand: list[Tokenizer], builtin: Registry, request: pytest.FixtureRequest
) -> None:
    """In the long profile, which has enough inputs, every check outside of `IDLE` must also have been tried."""
    kind, name = part
    adapter: Adapter | None = builtin.adapters[name] if kind == "adapter" else None
    template: Template | None = find_template(name, builtin) if kind == "template" else None
    seed = 0 if settings().derandomize else random.randrange(2**32)
    examples = max(1, round(AT_MOST / len(bundled(builtin)) / len(at_hand)))
    generated = 0

    def count() -> None:
        nonlocal generated
        generated += 1

    tried: dict[str, int] = defaultdict(int)
    subject = Subject(adapter=adapter, template=template, tokenizer=at_hand[0], registry=builtin)
    for tokenizer in at_hand:
        subject = subject.with_tokenizer(tokenizer)
        # The time depends on the format alone: it is measured with one tokenizer, and not with the others.
        checks = set(CHECKS) - ({"the_cost_grows_with_the_text"} if tokenizer is not at_hand[0] and not LONG else set())
        for outcome in run_checks(subject, sorted(checks), examples=examples, seed=seed, progress=count):
            assert outcome.status != "failed", f"seed {seed}, {outcome.failure}"
            if outcome.status != "not applicable":
                tried[outcome.check.name] += outcome.tried
    request.config.stash[GENERATED] = request.config.stash.get(GENERATED, 0) + generated
    idle = {check for check, times in tried.items() if not times}
    assert not LONG or idle <= IDLE.get(subject.name, set()), "a check that is never tried"


def test_special_tokens_of_its_own(builtin: Registry) -> None:
    """A template is also checked with a tokenizer to which its special tokens were added."""
    from templatekit.testing import subjects_of

    for name in builtin.templates:
        if builtin.templates.owner(name).built_in:
            for subject in subjects_of(name, ["bytes"], builtin)[1:]:
                for outcome in run_checks(subject, examples=6):
                    assert outcome.status != "failed", str(outcome.failure)
