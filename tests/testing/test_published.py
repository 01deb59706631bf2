"""docs/published.md lists the promises that published chat templates break; these tests find the same.

Every template is checked unchanged, on the first tiny tokenizer with the control tokens of the template added. By
default few inputs are tried, and nothing may be found that is not on the page. `HYPOTHESIS_PROFILE=long` tries as many
inputs as were tried for the page, and must find all that is on it. `--update-golden` rewrites the names.
"""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from pathlib import Path

import pytest
from testkit.at_hand import Tokenizers
from testkit.budget import LONG, one_in
from testkit.published import ORIGINALS, OWN, assistant, conversation, published, source_of, token_texts, user

from templatekit import Registry, Template, TemplateFile
from templatekit.testing import CHECKS, Subject, run_checks, tiny_tokenizer
from templatekit.types import SpecialTokens

PAGE = Path(__file__).parents[2] / "docs" / "published.md"
_NAMES = re.compile(r"(?<=^Broken by )`.*?(?=\.$)", re.MULTILINE | re.DOTALL)
_NONE = re.compile(r"(?<=break none: )`.*?(?=\.$)", re.MULTILINE | re.DOTALL)
MANY, FEW = 30, 4
"""Number of inputs for each check."""


def broken_by(name: str, tokenizer_of: Tokenizers, registry: Registry, *, examples: int, clock: bool) -> set[str]:
    """The checks that a template fails. Time is checked only with `clock`, because other work disturbs it."""
    chat = published(name, tokenizer_of)
    if name in OWN:
        tokenizer = tokenizer_of(name.removesuffix("-own"))
    else:
        known = tiny_tokenizer("bytes").control_tokens
        tokenizer = tiny_tokenizer("bytes", tuple(sorted(set(token_texts(name)) - set(known))))
    checks = sorted(set(CHECKS) - (set() if clock else {"the_cost_grows_with_the_text"}))
    subject = Subject(template=chat.template, tokenizer=tokenizer, registry=registry)
    outcomes = run_checks(subject, checks, examples=examples, shrink=False)
    return {outcome.check.name for outcome in outcomes if outcome.status == "failed"}


def listed_templates(text: str) -> dict[str, list[str]]:
    """The templates that break each check, according to the page."""
    parts = re.split(r"^## `(\w+)`$", text, flags=re.MULTILINE)
    found = {}
    for check, section in zip(parts[1::2], parts[2::2], strict=True):
        names = _NAMES.search(section)
        assert names is not None, f"{check} names no template"
        found[check] = re.findall(r"`([^`]+)`", names[0])
    return found


ENDS = {"gemma4_v5": "<turn|>", "diffusion_gemma": "<turn|>"}
"""The end marker that the page tells users to name."""


@pytest.mark.parametrize("name", sorted(set(ENDS) & set(ORIGINALS)))
def test_an_answer_ends_as_the_page_says(name: str) -> None:
    source = source_of(name)
    assert f"--end-marker '{ENDS[name]}'" in PAGE.read_text(encoding="utf-8")
    template = Template(TemplateFile(name=name, source=source), strict=False).ended_by(ENDS[name])
    tokens = SpecialTokens(special=frozenset(token_texts(name)))
    for answer in (assistant("A."), assistant("A.", reasoning="T."), assistant("", reasoning="T.")):
        rendered = template.render(conversation(user("Q?"), answer), tokens)
        last = rendered.target_spans[-1]
        assert rendered.text[last.marker_start : last.end].endswith(ENDS[name])


@pytest.mark.parametrize("name", one_in(5, [*ORIGINALS, *OWN]))
def test_the_page_says_what_a_template_breaks(name: str, tokenizer_of: Tokenizers, builtin: Registry) -> None:
    found = broken_by(name, tokenizer_of, builtin, examples=MANY if LONG else FEW, clock=LONG)
    expected = {check for check, names in listed_templates(PAGE.read_text(encoding="utf-8")).items() if name in names}
    assert found <= expected
    if LONG:
        assert found == expected


def test_the_page_names_every_template(tokenizer_of: Tokenizers, builtin: Registry, update_golden: bool) -> None:
    if not ORIGINALS:
        pytest.skip("trl is not installed")
    text = PAGE.read_text(encoding="utf-8")
    if update_golden:
        broken = defaultdict(list)
        for name in [*ORIGINALS, *OWN]:
            for check in broken_by(name, tokenizer_of, builtin, examples=MANY, clock=True):
                broken[check].append(name)
        assert set(broken) == set(listed_templates(text)), "the page explains each check that is broken, and no other"
        text = rewritten(text, broken)
        PAGE.write_text(text, encoding="utf-8")
    listed = {name for names in listed_templates(text).values() for name in names}
    none = _NONE.search(text)
    assert none is not None
    kept = set(re.findall(r"`([^`]+)`", none[0]))
    assert not listed & kept
    assert listed | kept == {*ORIGINALS, *OWN}


def rewritten(text: str, broken: dict[str, list[str]]) -> str:
    """The page with other names of templates."""
    parts = re.split(r"^(## `\w+`)$", text, flags=re.MULTILINE)
    for place in range(1, len(parts), 2):
        names = broken[parts[place][4:-1]]
        parts[place + 1] = _NAMES.sub(lambda _, names=names: listing(names), parts[place + 1], count=1)
    intact = [name for name in [*ORIGINALS, *OWN] if not any(name in names for names in broken.values())]
    return _NONE.sub(lambda _: listing(intact), "".join(parts))


def listing(names: list[str]) -> str:
    text = ", ".join(f"`{name}`" for name in names)
    return textwrap.fill(text, 120, initial_indent=" " * len("These break none: ")).lstrip()
