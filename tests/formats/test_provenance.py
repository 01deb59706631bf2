"""Every method of `TrackedText` gives what plain `str` gives, and keeps the origin of every character.

The model is a list of (character, origin) pairs, on which the same method is done by hand.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from templatekit.formats.provenance import (
    Runs,
    TrackedText,
    concat,
    inherit_origin,
    literal,
    mark_generation,
    plain_text,
    spans_of,
    track,
    with_provenance,
)
from templatekit.types import COMPUTED, TEMPLATE, Origin, field_origin

Pairs = list[tuple[str, Origin]]
ORIGINS = [TEMPLATE, field_origin("content", 0), field_origin("content", 1), field_origin("role", 0)]

alphabet = st.sampled_from([*"ab ,xX\n\t", "ß", "İ", "é", "\u0301", "\x1c", "\u2028", "<", "|"])
pieces = st.tuples(st.text(alphabet, max_size=4), st.sampled_from(ORIGINS))
traced_texts = st.lists(pieces, max_size=5).map(
    lambda parts: concat([TrackedText(t, ((len(t), o),)) for t, o in parts if t])
)
separators = st.text(alphabet, min_size=1, max_size=2)
numbers = st.integers(-7, 7)


def pairs(text: str) -> Pairs:
    """The model of a tracked text. A plain text has the origin `COMPUTED`."""
    runs: Runs = text._runs if isinstance(text, TrackedText) else ((len(text), COMPUTED),)
    origins = [origin for length, origin in runs for _ in range(length)]
    assert len(origins) == len(text), "the runs do not cover the text"
    return list(zip(plain_text(text), origins, strict=True))


def check_cut(result: str, expected: str, source: Pairs, start: int) -> None:
    """`result` is `expected`, and is the source's characters from `start` on."""
    assert plain_text(result) == expected
    assert pairs(result) == source[start : start + len(expected)]


def in_order(results: list[str], expected: list[str], source: Pairs) -> None:
    """The results are cut out of the source from left to right, each with its characters' own origins."""
    assert [plain_text(result) for result in results] == expected
    position = 0
    plain = "".join(character for character, _ in source)
    for result in results:
        position = plain.index(plain_text(result), position)
        assert pairs(result) == source[position : position + len(result)]
        position += len(result)


@given(traced_texts, st.none() | numbers, st.none() | numbers, st.none() | numbers.filter(bool))
def test_slices(text: TrackedText, start: int | None, stop: int | None, step: int | None) -> None:
    cut = slice(start, stop, step)
    assert plain_text(text[cut]) == plain_text(text)[cut]
    assert pairs(text[cut]) == pairs(text)[cut]


@given(traced_texts)
def test_single_characters(text: TrackedText) -> None:
    assert [pairs(text[index]) for index in range(-len(text), len(text))] == [[pair] for pair in pairs(text) * 2]
    assert [pairs(character) for character in text] == [[pair] for pair in pairs(text)]
    with pytest.raises(IndexError):
        text[len(text)]


@given(traced_texts, traced_texts, st.text(alphabet, max_size=3))
def test_concatenation(left: TrackedText, right: TrackedText, plain: str) -> None:
    assert pairs(left + right) == pairs(left) + pairs(right)
    assert pairs(left + plain) == pairs(left) + pairs(plain)
    assert pairs(plain + right) == pairs(plain) + pairs(right)
    assert pairs(concat([left, plain, right])) == pairs(left) + pairs(plain) + pairs(right)
    with pytest.raises(TypeError):
        left + 1  # type: ignore[operator]


@given(traced_texts, st.integers(-2, 4))
def test_repetition(text: TrackedText, times: int) -> None:
    assert pairs(text * times) == pairs(times * text) == pairs(text) * times


@given(traced_texts, st.lists(traced_texts, max_size=4))
def test_join(separator: TrackedText, items: list[TrackedText]) -> None:
    expected: Pairs = []
    for index, item in enumerate(items):
        expected += (pairs(separator) if index else []) + pairs(item)
    assert plain_text(separator.join(items)) == plain_text(separator).join(items)
    assert pairs(separator.join(items)) == expected


@given(traced_texts, st.none() | st.text(alphabet, max_size=3), st.sampled_from(["strip", "lstrip", "rstrip"]))
def test_stripping(text: TrackedText, characters: str | None, method: str) -> None:
    plain = plain_text(text)
    start = len(plain) - len(plain.lstrip(characters)) if method != "rstrip" else 0
    check_cut(getattr(text, method)(characters), getattr(plain, method)(characters), pairs(text), start)


@given(traced_texts, st.text(alphabet, max_size=2))
def test_prefix_and_suffix(text: TrackedText, part: str) -> None:
    plain = plain_text(text)
    without = plain.removeprefix(part)
    check_cut(text.removeprefix(part), without, pairs(text), len(plain) - len(without))
    check_cut(text.removesuffix(part), plain.removesuffix(part), pairs(text), 0)


@given(traced_texts, st.none() | separators, st.integers(-1, 4), st.sampled_from(["split", "rsplit"]))
def test_splitting(text: TrackedText, separator: str | None, limit: int, method: str) -> None:
    in_order(getattr(text, method)(separator, limit), getattr(plain_text(text), method)(separator, limit), pairs(text))


@given(traced_texts, separators, st.integers(-1, 4))
def test_splitting_keeps_the_right_occurrence(text: TrackedText, separator: str, limit: int) -> None:
    """Joined with the separator again, the parts are the text, character by character."""
    for method in ("split", "rsplit"):
        joined: Pairs = []
        position = 0
        for index, piece in enumerate(getattr(text, method)(separator, limit)):
            joined += (pairs(text)[position : position + len(separator)] if index else []) + pairs(piece)
            position = len(joined)
        assert joined == pairs(text)


@given(traced_texts, st.booleans())
def test_splitlines(text: TrackedText, keep: bool) -> None:
    in_order(text.splitlines(keep), plain_text(text).splitlines(keep), pairs(text))
    assert [pair for line in text.splitlines(True) for pair in pairs(line)] == pairs(text)


@given(traced_texts, separators, st.sampled_from(["partition", "rpartition"]))
def test_partition(text: TrackedText, separator: str, method: str) -> None:
    parts = getattr(text, method)(separator)
    assert tuple(map(plain_text, parts)) == getattr(plain_text(text), method)(separator)
    assert [pair for part in parts for pair in pairs(part)] == pairs(text)


@given(traced_texts, st.text(alphabet, max_size=2), traced_texts, st.integers(-1, 3))
def test_replace(text: TrackedText, old: str, new: TrackedText, count: int) -> None:
    plain, source = plain_text(text), pairs(text)
    assert plain_text(text.replace(old, new, count)) == plain.replace(old, new, count)
    expected: Pairs = []
    position, done = 0, 0
    while position <= len(plain):
        if done != count and plain.startswith(old, position):
            expected += pairs(new)
            done += 1
            if old:
                position += len(old)
                continue
        expected += source[position : position + 1]
        position += 1
    assert pairs(text.replace(old, new, count)) == expected


@given(traced_texts, st.sampled_from(["lower", "upper", "title", "capitalize", "swapcase"]))
def test_change_of_case(text: TrackedText, method: str) -> None:
    result, plain = getattr(text, method)(), getattr(plain_text(text), method)()
    assert plain_text(result) == plain
    # A change of case that changes the length (ß, İ) gives plain text, which then gets the origin of the whole field.
    origins = [origin for _, origin in pairs(text)] if len(plain) == len(text) else [COMPUTED] * len(plain)
    assert [origin for _, origin in pairs(result)] == origins


@given(traced_texts, st.lists(traced_texts, min_size=2, max_size=2), numbers)
def test_percent_formatting(text: TrackedText, values: list[TrackedText], number: int) -> None:
    head, tail = literal("<%%>"), literal("|%5s|%d|%(a)s")
    result = (head + literal("%s") + text.replace("%", "") + literal("%s")) % tuple(values)
    assert pairs(result) == (pairs(literal("<%>")) + pairs(values[0]) + pairs(text.replace("%", "")) + pairs(values[1]))
    plain = {"a": values[0]}
    assert pairs(literal("%(a)s") % plain) == pairs(values[0])
    formatted = literal("%5s|%d") % (values[0], number)
    assert plain_text(formatted) == f"{plain_text(values[0]):>5}|{number}"
    assert [origin for _, origin in pairs(formatted)][-len(str(number)) :] == [COMPUTED] * len(str(number))
    assert plain_text(literal("%*d") % (5, number)) == f"{number:5d}"
    assert all(not origin.is_template for _, origin in pairs(literal("%*d") % (5, number)))
    with pytest.raises(TypeError):
        tail % ()


@given(traced_texts)
def test_str_of_a_tracked_text_is_itself(text: TrackedText) -> None:
    assert str(text) is text
    assert type(plain_text(text)) is str
    assert plain_text(text) == text
    assert hash(plain_text(text)) == hash(text)


OVERRIDDEN = sorted(name for name in vars(TrackedText) if name in vars(str) and name not in ("__new__", "__doc__"))
TRIED = {
    "__add__": "concatenation",
    "__getitem__": "slices",
    "__iter__": "single_characters",
    "__mod__": "percent_formatting",
    "__mul__": "repetition",
    "__rmul__": "repetition",
    "__str__": "str_of_a_tracked_text_is_itself",
    "capitalize": "change_of_case",
    "join": "join",
    "lower": "change_of_case",
    "lstrip": "stripping",
    "partition": "partition",
    "removeprefix": "prefix_and_suffix",
    "removesuffix": "prefix_and_suffix",
    "replace": "replace",
    "rpartition": "partition",
    "rsplit": "splitting",
    "rstrip": "stripping",
    "split": "splitting",
    "splitlines": "splitlines",
    "strip": "stripping",
    "swapcase": "change_of_case",
    "title": "change_of_case",
    "upper": "change_of_case",
}


def test_every_overridden_method_has_a_test() -> None:
    assert sorted(TRIED) == OVERRIDDEN
    assert all(f"test_{name}" in globals() for name in TRIED.values())


NOT_OVERRIDDEN: dict[str, tuple[Any, ...]] = {
    "casefold": (),
    "center": (12,),
    "expandtabs": (4,),
    "ljust": (12,),
    "rjust": (12, "*"),
    "zfill": (12,),
    "translate": ({ord("a"): "bb"},),
}


@given(traced_texts, st.sampled_from(sorted(NOT_OVERRIDDEN)))
def test_all_other_methods_give_plain_text(text: TrackedText, method: str) -> None:
    """The environment then gives this text the origin of the arguments, so never the template's by mistake."""
    result = getattr(text, method)(*NOT_OVERRIDDEN[method])
    assert plain_text(result) == getattr(plain_text(text), method)(*NOT_OVERRIDDEN[method])
    assert all(origin == COMPUTED for _, origin in pairs(result))


@given(traced_texts)
def test_spans_are_ordered_gap_free_and_joined(text: TrackedText) -> None:
    spans = spans_of(text)
    assert [span.start for span in spans] == [0, *(span.end for span in spans)][: len(spans)]
    assert (spans[-1].end if spans else 0) == len(text)
    assert all(left.origin != right.origin for left, right in itertools.pairwise(spans))
    assert [span.origin for span in spans for _ in range(span.start, span.end)] == [o for _, o in pairs(text)]


@given(traced_texts)
def test_generation_marks_keep_origins(text: TrackedText) -> None:
    marked = mark_generation(text)
    assert all(origin.generation for _, origin in pairs(marked))
    assert [(c, o.kind, o.message, o.field) for c, o in pairs(marked)] == [
        (c, o.kind, o.message, o.field) for c, o in pairs(text)
    ]


FIELD, OTHER = field_origin("content", 0), field_origin("content", 1)


def sources() -> Iterator[tuple[str, list[Any], Origin]]:
    yield "one field", [track("a", FIELD)], FIELD
    yield "a field and template text", [track("a", FIELD), literal("b")], FIELD
    yield "a field and a number", [track("a", FIELD), 3], FIELD
    yield "two fields", [track("a", FIELD), track("b", OTHER)], COMPUTED
    yield "template text alone", [literal("a"), literal("b")], TEMPLATE
    yield "template text in a generation block", [mark_generation(literal("a"))], TEMPLATE
    yield "template text and a number, which may be data", [literal("a"), 3], COMPUTED
    yield "a number", [3.5], COMPUTED
    yield "nothing", [None, True], COMPUTED
    yield "a structure of one field", [track({"a": [1, "b"]}, FIELD)], FIELD
    yield "a mapping that the template built", [{literal("k"): track("a", FIELD)}], FIELD
    yield "a mapping of two fields", [{literal("k"): track("a", FIELD), literal("l"): track("b", OTHER)}], COMPUTED
    yield "text without origin", ["plain"], COMPUTED
    yield "a view that cannot be looked into", [literal("%s"), track({"a": "b"}, FIELD).items()], COMPUTED
    yield "bytes", [literal("%s"), b"<|im_end|>"], COMPUTED
    yield "a generator", [literal("%s"), (x for x in "a")], COMPUTED


@pytest.mark.parametrize(("given", "expected"), [pytest.param(g, e, id=name) for name, g, e in sources()])
def test_computed_text_inherits_the_origin_of_what_went_in(given: list[Any], expected: Origin) -> None:
    result = inherit_origin("made", given)
    assert {origin for _, origin in pairs(result)} == {expected}
    wrapped = with_provenance(lambda *_: "made")(*given)
    assert pairs(wrapped) == pairs(result)


def test_only_computed_runs_change_their_origin() -> None:
    text = concat([literal("a"), "b", track("c", FIELD)])
    assert [origin for _, origin in pairs(inherit_origin(text, [track("x", OTHER)]))] == [TEMPLATE, OTHER, FIELD]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(string.printable, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_tracked_data_equals_the_data(value: Any) -> None:
    copy = track(value, FIELD)
    assert copy == value

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from (*texts(key), *texts(item))
        elif isinstance(value, list):
            for item in value:
                yield from texts(item)

    assert all(origin == FIELD for text in texts(copy) for _, origin in pairs(text))


def forgetful_strip(text: TrackedText) -> TrackedText:
    """A wrong method: it keeps the first runs although characters were removed."""
    stripped = plain_text(text).lstrip()
    kept: list[tuple[int, Origin]] = []
    left = len(stripped)
    for length, origin in text._runs:
        kept.append((min(length, left), origin))
        left -= min(length, left)
    return TrackedText(stripped, tuple(kept))


@pytest.mark.parametrize(
    "wrong",
    [forgetful_strip, lambda text: plain_text(text).lstrip(), lambda text: TrackedText(plain_text(text).lstrip())],
)
def test_the_model_notices_lost_origins(wrong: Callable[[TrackedText], str]) -> None:
    text = concat([literal("  a"), track("b", FIELD)])
    with pytest.raises(AssertionError):
        check_cut(wrong(text), "ab", pairs(text), 2)
    check_cut(text.lstrip(), "ab", pairs(text), 2)
