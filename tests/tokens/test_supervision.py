"""What `train_on` names is trained, by characters; the oracle knows nothing of spans, cuts or how it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from types import MappingProxyType
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.look import Eye

from templatekit import ConfigError, DataOptions, LossSpan, RenderedText, Span
from templatekit.config.train_on import TrainOnWeights, parse_train_on
from templatekit.tokens.supervision import loss_spans
from templatekit.types import COMPUTED, TEMPLATE, TargetSpan, field_origin

BASES = ("response", "content", "last", "all")
ROLES = ("user", "assistant", "tool", "ipython")
FIELDS = ("content", "context", "reasoning", "tool_calls", "tool_call_id", "name")
HEADER = ("role", "name")


class Wanted(NamedTuple):
    """The intended training, as the user means it."""

    base: str = "response"
    weight: float = 1.0
    parts: Mapping[tuple[str | None, str | None], float] = MappingProxyType({})
    """By role and field, None for any."""

    def text(self, spelling: Sequence[bool] = ()) -> str:
        """The option as text; `spelling` decides the form of each part that can be written in two ways."""
        parts = [f"{self.base}={self.weight}"]
        for index, ((role, field), weight) in enumerate(self.parts.items()):
            long = bool(spelling and spelling[index % len(spelling)])
            name = f"{role}.*" if field is None else f"{role or '*'}.{field}"
            if role in ("user", "assistant", "tool") and field is None and not long:
                name = role
            if role is None and field not in (None, "content") and not long:
                name = str(field)
            parts.append(f"{name}={weight}")
        return ",".join(parts)


def wanted_weights(text: RenderedText, wanted: Wanted) -> Iterator[float]:
    """The weight of each character by the definitions."""
    last = text.target_spans[-1].message if text.target_spans else None
    for at in range(len(text.text)):
        origin = next(span.origin for span in text.spans if span.start <= at < span.end)
        target = next((t for t in text.target_spans if t.start <= at < t.end), None)
        role = text.roles[origin.message] if origin.message is not None else None
        named = [
            (bool(field), bool(of), weight)
            for (of, field), weight in wanted.parts.items()
            if origin.field is not None
            and (of is None or of == role)
            and (field == origin.field or (field is None and origin.field not in HEADER))
            and ((target is not None and origin.message is not None) or is_new(text, role, origin.message))
        ]
        if named:
            # A field goes before a role, and a field of one role before a field of any.
            yield max(named)[2] * (text.message_weights[origin.message] if origin.message is not None else 1)
        elif wanted.base == "all":
            yield wanted.weight
        elif target is None or (wanted.base == "last" and target.message != last):
            yield 0.0
        else:
            own = origin.kind == "computed" or (origin.message == target.message and origin.field not in HEADER)
            own = own or at >= target.marker_start
            yield wanted.weight * text.message_weights[target.message] if own or wanted.base != "content" else 0.0


def is_new(text: RenderedText, role: str | None, message: int | None) -> bool:
    """Whether a text outside of the targets belongs to the prompt and is in no earlier sample of the record. Text that
    belongs to no message is in every sample.
    """
    if message is None:
        return text.history == 0
    return role != "assistant" and message >= text.history


WEIGHTS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0])
ORIGINS = st.one_of(
    st.just(TEMPLATE),
    st.just(COMPUTED),
    st.sampled_from([field_origin("tools"), field_origin("documents")]),
    st.builds(field_origin, st.sampled_from([*FIELDS, "role"]), st.integers(0, 3)),
)


@st.composite
def texts_with_targets(draw: st.DrawFn) -> RenderedText:
    spans, position = [], 0
    for length, origin in draw(st.lists(st.tuples(st.integers(1, 4), ORIGINS), min_size=1, max_size=10)):
        spans.append(Span(start=position, end=position + length, origin=origin))
        position += length
    places = sorted(draw(st.lists(st.integers(0, position), max_size=9)))
    targets = [
        TargetSpan(message=draw(st.integers(0, 3)), start=start, marker_start=marker, end=end)
        for start, marker, end in zip(places[::3], places[1::3], places[2::3], strict=False)
    ]
    return RenderedText(
        text="x" * position,
        spans=tuple(spans),
        target_spans=tuple(targets),
        message_weights=tuple(draw(st.lists(WEIGHTS, min_size=4, max_size=4))),
        roles=tuple(draw(st.lists(st.sampled_from(ROLES), min_size=4, max_size=4))),
        history=draw(st.sampled_from([0, 0, 1, 3])),
    )


@st.composite
def wants(draw: st.DrawFn) -> Wanted:
    base, weight = draw(st.sampled_from(BASES)), draw(WEIGHTS)
    roles, fields = st.sampled_from(ROLES), st.sampled_from(FIELDS)
    part = st.one_of(
        st.tuples(roles, st.none()),
        st.tuples(st.none(), st.sampled_from([*FIELDS, "tools", "documents"])),
        st.tuples(roles, fields),
    )
    wanted = Wanted(base, weight, draw(st.dictionaries(part, WEIGHTS, max_size=4)))
    return wanted if weight or any(wanted.parts.values()) else wanted._replace(weight=1.0)


def by_character(spans: Sequence[LossSpan]) -> list[float]:
    return [span.weight for span in spans for _ in range(span.start, span.end)]


@given(texts_with_targets(), wants(), st.lists(st.booleans(), max_size=3))
def test_loss_spans_are_the_definition(text: RenderedText, wanted: Wanted, spelling: list[bool]) -> None:
    found = loss_spans(text, wanted.text(spelling))
    assert [span.start for span in found] == [0, *(span.end for span in found)][: len(found)]
    assert found[-1].end == len(text.text)
    assert by_character(found) == list(wanted_weights(text, wanted))


@given(texts_with_targets(), st.sampled_from(BASES))
def test_a_base_alone_is_written_without_its_weight(text: RenderedText, base: str) -> None:
    assert loss_spans(text, base) == loss_spans(text, f"{base}=1") == loss_spans(text, f" {base} = 1.0 ")
    assert by_character(loss_spans(text, base)) == list(wanted_weights(text, Wanted(base)))


@given(texts_with_targets(), wants())
def test_cuts_stand_where_the_weight_changes_or_a_trained_turn_begins(text: RenderedText, wanted: Wanted) -> None:
    found = loss_spans(text, wanted.text())
    weights = list(wanted_weights(text, wanted))
    turns = list(wanted_weights(replace(text, spans=(Span(start=0, end=len(weights), origin=TEMPLATE),)), wanted))
    last = text.target_spans[-1].message if text.target_spans else None
    begins = set()
    for target in text.target_spans:
        # The base trains the turn, even if it has no character, or a part trains some of the turn.
        base = wanted.weight * (text.message_weights[target.message] if wanted.base != "all" else 1)
        base *= wanted.base != "last" or target.message == last
        if base or any(weights[target.start : target.end]):
            begins.add(target.start)
    for left, right in pairwise(found):
        assert left.weight != right.weight or right.start in begins
    assert begins - {0, len(weights)} <= {span.start for span in found}
    assert len(turns) == len(weights)


def fixed() -> RenderedText:
    """`uuccaarrrzz`: a user's content and context, then an answer with a header, reasoning, content and marker."""
    pieces = [
        ("uu", field_origin("content", 0)),
        ("cc", field_origin("context", 0)),
        ("n", field_origin("name", 1)),
        ("rr", field_origin("reasoning", 1)),
        ("-", TEMPLATE),
        ("aa", field_origin("content", 1)),
        ("z", TEMPLATE),
        ("\n", TEMPLATE),
    ]
    spans, position = [], 0
    for text, origin in pieces:
        spans.append(Span(start=position, end=position + len(text), origin=origin))
        position += len(text)
    return RenderedText(
        text="".join(text for text, _ in pieces),
        spans=tuple(spans),
        target_spans=(TargetSpan(message=1, start=5, marker_start=10, end=11),),
        message_weights=(1.0, 0.5),
        roles=("user", "assistant"),
    )


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        #                            u    u    c    c    n    r    r    -    a    a    z   \n
        ("response",                [0,   0,   0,   0,   0,   0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0]),
        ("response=2,context=0.1",  [0,   0,   0.1, 0.1, 0,   1,   1,   1,   1,   1,   1,   0]),
        ("user=0.2",                [0.2, 0.2, 0.2, 0.2, 0,   0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0]),
        ("user=0.2,context=0",      [0.2, 0.2, 0,   0,   0,   0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0]),
        ("reasoning=0",             [0,   0,   0,   0,   0,   0,   0,   0.5, 0.5, 0.5, 0.5, 0]),
        ("content,reasoning=0",     [0,   0,   0,   0,   0,   0,   0,   0,   0.5, 0.5, 0.5, 0]),
        ("*.content=3",             [3,   3,   0,   0,   0,   0.5, 0.5, 0.5, 1.5, 1.5, 0.5, 0]),
        ("*.content=3,user.content=1", [1, 1,  0,   0,   0,   0.5, 0.5, 0.5, 1.5, 1.5, 0.5, 0]),
        ("assistant=0",             [0,   0,   0,   0,   0,   0,   0,   0.5, 0,   0,   0.5, 0]),
        ("response=0,user",         [1,   1,   1,   1,   0,   0,   0,   0,   0,   0,   0,   0]),
        ("name",                    [0,   0,   0,   0,   0,   0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0]),
        ("all",                     [1,   1,   1,   1,   1,   1,   1,   1,   1,   1,   1,   1]),
        ("all,assistant=0",         [1,   1,   1,   1,   1,   0,   0,   1,   0,   0,   1,   1]),
    ],
)  # fmt: skip
def test_by_hand(train_on: str, expected: list[float]) -> None:
    assert by_character(loss_spans(fixed(), train_on)) == expected


def test_the_definition_notices_a_wrong_weight() -> None:
    """The oracle's negative control: for every part, another option gives other weights."""
    text = fixed()
    wanted = Wanted("response", 1.0, {("user", None): 0.2, (None, "context"): 0.1, ("assistant", "reasoning"): 0.0})
    assert by_character(loss_spans(text, wanted.text())) == list(wanted_weights(text, wanted))
    others = [wanted._replace(base="content"), wanted._replace(weight=2.0)]
    others += [wanted._replace(parts={k: v for k, v in wanted.parts.items() if k != key}) for key in wanted.parts]
    for other in others:
        assert by_character(loss_spans(text, wanted.text())) != list(wanted_weights(text, other))


# The grammar


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("response", TrainOnWeights("response", 1, {})),
        ("last=0.5", TrainOnWeights("last", 0.5, {})),
        ("response=1, context=0.1", TrainOnWeights("response", 1, {("*", "context"): 0.1})),
        ("user=.2,content", TrainOnWeights("content", 1, {("user", "*"): 0.2})),
        ("tools,tool=0", TrainOnWeights("response", 1, {("*", "tools"): 1, ("tool", "*"): 0})),
        ("tool_calls=1e-1", TrainOnWeights("response", 1, {("*", "tool_calls"): 0.1})),
        ("user.*", TrainOnWeights("response", 1, {("user", "*"): 1})),
        ("*.content=2,*.name=0", TrainOnWeights("response", 1, {("*", "content"): 2, ("*", "name"): 0})),
        ("ipython.*=1,a.b.content=2", TrainOnWeights("response", 1, {("ipython", "*"): 1, ("a.b", "content"): 2})),
    ],
)  # fmt: skip
def test_forms(text: str, parts: TrainOnWeights) -> None:
    assert parse_train_on(text) == parts
    assert DataOptions.parse({"train_on": text}).train_on == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("respons", "no part is named 'respons' (a role is written 'respons.*'); did you mean 'response' or "),
        ("response,usr=0.2", "no part is named 'usr' (a role is written 'usr.*'); did you mean 'user'?"),
        ("ipython", "no part is named 'ipython' (a role is written 'ipython.*'); known: all, assistant, content, "),
        ("user.contxt", "no part is named 'user.contxt'; expected ROLE.FIELD, ROLE.* or *.FIELD; did you mean "),
        ("user.tools", "no part is named 'user.tools'; expected ROLE.FIELD, ROLE.* or *.FIELD; did you mean "),
        ("user.role", "no part is named 'user.role'; expected"),
        ("*", "no part is named '*'; expected ROLE.FIELD, ROLE.* or *.FIELD; known: "),
        ("*.*", "no part is named '*.*'; expected ROLE.FIELD"),
        (".content", "no part is named '.content'; expected ROLE.FIELD"),
        ("response=-1", "the weight of 'response' is '-1'; expected 0, or a number from 1e-9 to 1e9"),
        ("response=x", "the weight of 'response' is 'x'; expected 0, or a number from 1e-9 to 1e9"),
        ("response=", "the weight of 'response' is ''; expected 0, or a number from 1e-9 to 1e9"),
        ("response=nan", "the weight of 'response' is 'nan'; expected 0, or a number from 1e-9 to 1e9"),
        ("user=1e10", "the weight of 'user' is '1e10'; expected 0, or a number from 1e-9 to 1e9"),
        ("user=1e-10", "the weight of 'user' is '1e-10'; expected 0, or a number from 1e-9 to 1e9"),
        ("user=inf", "the weight of 'user' is 'inf'; expected 0, or a number from 1e-9 to 1e9"),
        ("user=1=2", "the weight of 'user' is '1=2'; expected 0, or a number from 1e-9 to 1e9"),
        ("=1", "a part has no name; expected part=weight, separated by commas: response=1,context=0.1"),
        ("", "a part has no name; "),
        ("response,,user", "a part has no name; "),
        ("response,response=2", "'response' twice"),
        ("response,last", "two bases, 'response' and 'last'; expected one of them"),
        ("user=1,user=2", "'user' twice"),
        ("user,user.*", "'user.*' twice"),
        ("context,*.context", "'*.context' twice"),
        ("response=0", "every weight is 0: nothing would be trained"),
        ("all=0,user=0,reasoning=0.0", "every weight is 0: nothing would be trained"),
    ],
)  # fmt: skip
def test_wrong_forms_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        DataOptions.parse({"train_on": text})
    assert str(raised.value).startswith(f"train_on: found {text!r}; {message}")


@given(st.text(alphabet="respon=,.*01 usertl_-", max_size=30))
def test_any_text_is_taken_or_refused_by_name(text: str) -> None:
    try:
        parts = parse_train_on(text)
    except ConfigError:
        return
    assert parts.base in BASES
    assert parts.weight or any(parts.named.values())


# In whole


RECORD = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say a."},
        {"role": "assistant", "content": "A.", "reasoning_content": "Hm."},
        {"role": "user", "content": "Say b.", "weight": 0.5},
        {"role": "assistant", "content": "B.", "train": False},
        {"role": "user", "content": "Say c."},
        {"role": "assistant", "content": "C.", "loss_weight": 2},
    ]
}
SOURCE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)


def runs(eye: Eye, train_on: str, **options: str) -> list[tuple[float, str]]:
    """The trained runs of one weight, decoded."""
    example = eye.one(RECORD, SOURCE, train_on=train_on, **options).example
    assert [label == -100 for label in example.labels] == [weight == 0 for weight in example.loss_weights]
    tokens = zip(example.loss_weights, example.input_ids, strict=True)
    grouped = groupby(tokens, key=lambda token: token[0])
    return [(weight, eye.tokenizer.decode([id for _, id in group])) for weight, group in grouped if weight]


@pytest.mark.parametrize("boundary", ["cut", "joint"])
@pytest.mark.parametrize("tokenizer", ["bytes", "nfc", "qwen3"])
def test_weights_of_tokens(tokenizer: str, boundary: str, eye_of: Callable[[str], Eye]) -> None:
    eye = eye_of(tokenizer)
    a, c = "<think>Hm.</think>A.<|im_end|>", "C.<|im_end|>"
    assert runs(eye, "response", boundary=boundary) == [(1, a), (2, c)]
    assert runs(eye, "last=0.25", boundary=boundary) == [(0.5, c)]
    if boundary == "joint" and tokenizer == "bytes":
        return  # its tokens merge across the edges of the user's text
    assert runs(eye, "response=0.5,user=0.2", boundary=boundary) == [
        (0.2, "Say a."), (0.5, a), (0.1, "Say b."), (0.2, "Say c."), (1, c),
    ]  # fmt: skip
    assert runs(eye, "system,assistant.reasoning=0.25,*.content=0.5", boundary=boundary) == [
        (0.5, "Be brief."), (0.5, "Say a."), (1, "<think>"), (0.25, "Hm."), (1, "</think>"), (0.5, "A."),
        (1, "<|im_end|>"), (0.25, "Say b."), (0.5, "Say c."), (1, "C."), (2, "<|im_end|>"),
    ]  # fmt: skip


def test_a_trained_text_of_the_prompt_is_cut_at_its_edges(eye_of: Callable[[str], Eye]) -> None:
    """No token holds characters of two weights; an untrained prompt is encoded as a server encodes it."""
    eye = eye_of("gpt2")
    record = {"instruction": "Work", "input": "", "output": "x"}
    source = "{{ instruction }}ing:{{ response }}{{ eos_token }}"

    def tokens(train_on: str) -> list[tuple[str, float]]:
        example = eye.one(record, source, train_on=train_on).example
        return [(eye.tokenizer.decode([id]), w) for id, w in zip(example.input_ids, example.loss_weights, strict=True)]

    end = [("x", 1.0), ("<|endoftext|>", 1.0)]
    assert tokens("response") == [("Working", 0.0), (":", 0.0), *end]
    assert tokens("response,user=0.5") == [("Work", 0.0), ("ing", 0.0), (":", 0.0), *end]
    assert tokens("response=0,*.content") == [("Work", 0.0), ("ing", 0.0), (":", 0.0), ("x", 1.0), (end[1][0], 0.0)]
