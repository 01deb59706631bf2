"""A text that is far too long has the same outcome as if it were encoded whole, which it is not."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import tokenizers
from hypothesis import event, example, given
from hypothesis import strategies as st
from testkit.at_hand import Tokenizers
from testkit.through import Through, conversation_records, instruction_records
from tokenizers import models, pre_tokenizers

from templatekit import ConfigError, Record, RecordError, Registry, Tokenizer
from templatekit.formats.lookup import find_template
from templatekit.formats.template import Template
from templatekit.pipeline.counts import Counts
from templatekit.testing import adversarial_text
from templatekit.tokens import assembly, long_texts, token_bounds
from templatekit.tokens import encoder as encoder_module
from templatekit.tokens.encoder import Encoder
from templatekit.tokens.long_texts import PartialExample
from templatekit.tokens.word_boundaries import WORD_BOUNDARY
from templatekit.types import TEMPLATE, RenderedText, Sample, Span

POLICIES = ("drop", "error", "turns", "context", "response")
TEMPLATES = ("alpaca", "chatml", "llama3")
BOUNDED = ("bytes", "nfc", "sentencepiece", "metaspace", "dolly", "strips")
NUMBER = re.compile(r"(at least )?\b(\d+)\b")


@pytest.fixture(scope="session")
def templates(builtin: Registry) -> dict[str, Template]:
    return {name: find_template(name, builtin) for name in TEMPLATES}


def long_text(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    """Texts with many word boundaries, with none, and with control tokens beside them."""
    fragment = adversarial_text(tokenizer) | st.sampled_from(("Hello there", "the", "it's 12", "naïve", "日本語"))
    spaced = st.lists(fragment, min_size=1, max_size=14).map(" ".join)
    return spaced | st.tuples(fragment, st.integers(1, 40)).map(lambda drawn: drawn[0] * drawn[1])


class Outcome:
    """What a run with a limit gives: a sample, or a reason; and the messages without their numbers."""

    def __init__(self, subject: Through, adapter: str, record: Record) -> None:
        pipeline = subject.pipeline(adapter)
        self.samples: list[Sample] = []
        self.error = ""
        try:
            self.samples = list(pipeline.run([record]))
        except (ConfigError, RecordError) as error:
            self.error = str(error)
        self.counts: Counts = pipeline.counts

    @property
    def exact(self) -> Any:
        """All that must not depend on how much was encoded."""
        counts = self.counts.as_dict()
        messages = [counts.pop("first_dropped"), counts.pop("first_truncated"), self.error]
        return self.samples, counts, NUMBER.sub("", str(messages))

    @property
    def numbers(self) -> list[tuple[bool, int]]:
        """The numbers of its messages: whether it is said to be a lower bound, and the number."""
        text = str([self.counts.first_dropped, self.counts.first_truncated, self.error])
        return [(bool(match[1]), int(match[2])) for match in NUMBER.finditer(text)]


def outcomes(subject: Through, adapter: str, record: Record, **sizes: int) -> tuple[Outcome, Outcome]:
    """The outcome of a text that is encoded whole, and of the same text where nothing is too short to be long."""
    whole = Outcome(subject, adapter, record)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"LONG_TEXT": 0, "_LONG_TEXT_PER_TOKEN": 0, "_GROWTH": 2} | sizes).items():
            patch.setattr(long_texts, name, value)
        return whole, Outcome(subject, adapter, record)


def check_same_outcome(subject: Through, adapter: str, record: Record, **sizes: int) -> None:
    whole, partial = outcomes(subject, adapter, record, **sizes)
    assert partial.exact == whole.exact
    assert len(partial.numbers) == len(whole.numbers)
    for (_, exact), (is_least, number) in zip(whole.numbers, partial.numbers, strict=True):
        assert number <= exact if is_least else number == exact
    event("at least" if any(is_least for is_least, _ in partial.numbers) else "encoded whole")


@pytest.mark.parametrize("policy", POLICIES)
@given(data=st.data())
def test_the_outcome_is_that_of_the_whole_text(
    policy: str, tokenizer: Tokenizer, templates: dict[str, Template], builtin: Registry, data: st.DataObject
) -> None:
    template = data.draw(st.sampled_from(TEMPLATES), label="template")
    train_on = data.draw(st.sampled_from(("response", "content", "last", "all")), label="train_on")
    control_tokens = data.draw(st.sampled_from(("template", "template", "everywhere")), label="control_tokens")
    limit = data.draw(st.integers(1, 60), label="limit")
    records = (instruction_records, conversation_records)[template != "alpaca"]
    adapter, record = data.draw(records(long_text(tokenizer), builtin), label="record")
    options = {"train_on": train_on, "control_tokens": control_tokens, "max_length": limit, "truncation": policy}
    subject = Through(templates[template], tokenizer, builtin, **options)
    check_same_outcome(subject, adapter, record, _START_PER_TOKEN=data.draw(st.sampled_from((1, 2, 4)), label="start"))


WORDY: Record = {"instruction": "Say it.", "output": "the quick brown fox jumps over the lazy dog " * 9}


@pytest.fixture
def limited(
    templates: dict[str, Template], builtin: Registry, tokenizer_of: Tokenizers
) -> Callable[[str, str, int], Through]:
    """Subjects by the tokenizer's name, the policy and the limit."""
    return lambda name, policy, limit: Through(
        templates["alpaca"], tokenizer_of(name), builtin, max_length=limit, truncation=policy
    )


Limited = Callable[[str, str, int], Through]


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("policy", ["drop", "response", "context"])
def test_only_a_start_is_encoded(monkeypatch: pytest.MonkeyPatch, limited: Limited, name: str, policy: str) -> None:
    encoded: list[int] = []
    encode = Encoder.encode_columns

    def counting(self: Encoder, texts: Any) -> Any:
        batch = [*texts]
        encoded.append(sum(len(rendered.text) for rendered, _ in batch))
        return encode(self, batch)

    monkeypatch.setattr(Encoder, "encode_columns", counting)
    long = WORDY["output"] * 300
    record = {**WORDY, "output": long}
    if policy == "context":  # many starts are tried
        long *= 20
        record = {**WORDY, "input": long, "output": "Yes."}
    subject = limited(name, policy, 200)
    outcome = Outcome(subject, "alpaca", record)
    assert sum(encoded) < len(long) // 20
    assert outcome.counts.dropped["too_long"] == (policy == "drop") and any(least for least, _ in outcome.numbers)


def test_a_text_is_long_from_a_size_on(limited: Limited) -> None:
    outcome = Outcome(limited("bytes", "drop", 100), "alpaca", {**WORDY, "output": WORDY["output"] * 20})
    assert not any(least for least, _ in outcome.numbers)


# Negative controls: a wrong proof gives another outcome.


def some_limit_differs(limited: Limited, name: str, policy: str, limits: Iterable[int]) -> bool:
    """Whether a limit gives another outcome when the text is encoded word by word, until its outcome seems certain."""
    for limit in limits:
        subject = limited(name, policy, limit)
        try:
            whole, partial = outcomes(subject, "alpaca", WORDY, _START_PER_TOKEN=0, _GROWTH=0)
        except IndexError:
            return True
        if whole.exact != partial.exact:
            return True
    return False


LIMITS = range(60, 80)


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_negative_control_stopping_one_word_too_early(
    monkeypatch: pytest.MonkeyPatch, limited: Limited, name: str
) -> None:
    assert not some_limit_differs(limited, name, "response", LIMITS)
    monkeypatch.setattr(long_texts, "_is_enough", lambda start, limit: len(start) + 3 > limit)
    assert some_limit_differs(limited, name, "response", LIMITS)


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_negative_control_stopping_within_a_word(monkeypatch: pytest.MonkeyPatch, limited: Limited, name: str) -> None:
    monkeypatch.setattr(long_texts, "WORD_BOUNDARY", re.compile(""))
    assert some_limit_differs(limited, name, "response", LIMITS)


def test_negative_control_a_bound_that_is_too_high(monkeypatch: pytest.MonkeyPatch, limited: Limited) -> None:
    limits = [len(WORDY["output"])]
    assert not some_limit_differs(limited, "bytes", "drop", limits)
    monkeypatch.setattr(token_bounds.TokenBounds, "characters_of_a_token", lambda self, text: 1)
    assert some_limit_differs(limited, "bytes", "drop", limits)


# What is proven of tokenizers.


@given(text=st.deferred(lambda: adversarial_text(max_fragments=12)))
@example(text="\u1f82" * 8)
@example(text="\u03b1\u0313\u0300\u0345" * 64)
def test_a_text_has_at_least_so_many_tokens(tokenizer: Tokenizer, text: str) -> None:
    bounds = tokenizer.bounds
    if bounds is None or not bounds.hold_for(text):
        return
    for control in (True, False):
        encoding = tokenizer.backend(control=control, prefix=False).encode(text, add_special_tokens=False)
        assert len(encoding.ids) >= bounds.least_tokens(text)
        assert bounds.drops_whitespace or bool(encoding.ids) == bool(text)


def test_negative_control_nfc_makes_fewer_characters(tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("nfc")
    assert tokenizer.bounds is not None and tokenizer.bounds.composes
    text = "\u03b1\u0313\u0300\u0345" * 64
    assert replace(tokenizer.bounds, longest_token=1, composes=False).least_tokens(text) == len(text)
    assert len(tokenizer.backend(control=True, prefix=False).normalizer.normalize_str(text)) == len(text) // 4


@pytest.mark.parametrize(
    ("name", "bounded"),
    [*dict.fromkeys(BOUNDED, True).items(), ("unigram", False), ("unknowing", False), ("folding", False)],
)
def test_which_tokenizers_have_bounds(tokenizer_of: Tokenizers, name: str, bounded: bool) -> None:
    tokenizer = tokenizer_of(name)
    assert (tokenizer.bounds is not None) == bounded == tokenizer.encodes_starts_alike


@pytest.mark.parametrize("name", ["gpt2", "llama2", "llama3", "qwen3", "smollm2", "mistral", "tekken"])
def test_real_tokenizers_have_bounds(tokenizer_of: Tokenizers, name: str) -> None:
    assert tokenizer_of(name).bounds is not None
    assert tokenizer_of(name).encodes_starts_alike == (name != "tekken")  # its vocabulary has control tokens as words


def test_the_symbols_of_bytes() -> None:
    assert set(token_bounds._BYTE_SYMBOLS) == set(pre_tokenizers.ByteLevel.alphabet())
    alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in ("\x00", " ", "a", "\x7f", "\u00ad", "\u00e9", "\uffff", "\U0010ffff"):
        ((symbols, _),) = alone.pre_tokenize_str(character)
        assert symbols == "".join(token_bounds._BYTE_SYMBOLS[byte] for byte in character.encode())


def test_no_bounds_for_text_with_bytes_that_the_vocabulary_lacks(tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of("smollm2")
    assert tokenizer.bounds is not None and tokenizer.bounds.hold_for("the \x01 \U0001f3fb")
    for character in ("\x04", "\x1d", "\U00040000", "\U000bffff"):
        assert not tokenizer.bounds.hold_for(f"the {character}")


@pytest.mark.parametrize("merges", [True, False])
def test_a_model_that_makes_a_control_id_of_text(merges: bool) -> None:
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {text: id for id, text in enumerate([*sorted(letters), "ab"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")] if merges else []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["ab"])
    tokenizer = Tokenizer(backend.to_str(), config={})
    assert tokenizer.bounds is not None and tokenizer.encodes_words_separately
    assert tokenizer.encodes_starts_alike is not merges


def test_a_vocabulary_without_all_bytes_has_no_bounds() -> None:
    letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {token_bounds._BYTE_SYMBOLS["é".encode()[0]]})
    backend = tokenizers.Tokenizer(models.BPE(vocab={text: id for id, text in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert Tokenizer(backend.to_str(), config={}).bounds is None


def test_a_partial_example_says_how_much_it_knows(limited: Limited) -> None:
    subject = limited("bytes", "response", 20)
    (whole,) = (
        Through(subject.template, subject.tokenizer, subject.registry)
        .pipeline("alpaca")
        .run([{**WORDY, "output": WORDY["output"] * 300}])
    )
    assert whole.tokenized is not None
    limit = subject.pipeline("alpaca").limit
    assert limit is not None
    partial = limit.partial_example(whole.rendered, whole.tokenized.loss_spans)
    assert isinstance(partial, PartialExample)
    assert limit.max_length < len(partial) == partial.least_tokens < len(whole.tokenized)
    assert partial.input_ids == whole.tokenized.input_ids[: len(partial)]
    assert partial.loss_weights == whole.tokenized.loss_weights[: len(partial)]
    assert long_texts.length_in_words(partial) == f"at least {len(partial)}"
    assert long_texts.length_in_words(whole.tokenized) == str(len(whole.tokenized))


# --- long texts that are encoded whole, but in parts ------------------------------------------------------------------


def in_parts(subject: Through, adapter: str, record: Record, part: int, boundary: re.Pattern[str]) -> Outcome:
    """The outcome where each fragment of more characters than a part is encoded in parts."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (encoder_module, assembly):
            patch.setattr(module, "LONG_FRAGMENT", part)
        patch.setattr(encoder_module, "_PART", part)
        patch.setattr(encoder_module, "WORD_BOUNDARY", boundary)
        return Outcome(subject, adapter, record)


@given(data=st.data())
def test_parts_give_the_ids_of_the_whole_text(
    tokenizer: Tokenizer, templates: dict[str, Template], builtin: Registry, data: st.DataObject
) -> None:
    template = data.draw(st.sampled_from(TEMPLATES), label="template")
    control_tokens = data.draw(st.sampled_from(("template", "template", "everywhere")), label="control_tokens")
    records = (instruction_records, conversation_records)[template != "alpaca"]
    adapter, record = data.draw(records(long_text(tokenizer), builtin), label="record")
    subject = Through(templates[template], tokenizer, builtin, control_tokens=control_tokens)
    part = data.draw(st.integers(1, 12), label="part")
    whole = Outcome(subject, adapter, record)
    assert in_parts(subject, adapter, record, part, WORD_BOUNDARY).exact == whole.exact


def test_parts_that_end_within_words_are_noticed(tokenizer_of: Tokenizers, builtin: Registry) -> None:
    """Negative control; and the parts are made at all."""
    template = find_template("alpaca", builtin)
    found = []
    for name in BOUNDED:
        subject = Through(template, tokenizer_of(name), builtin)
        whole = Outcome(subject, "alpaca", WORDY)
        assert in_parts(subject, "alpaca", WORDY, 40, WORD_BOUNDARY).exact == whole.exact
        found.append(in_parts(subject, "alpaca", WORDY, 41, re.compile("(?<=[a-z])(?=[a-z])")).exact != whole.exact)
    assert any(found)


def test_a_long_text_takes_few_bytes_for_each_token(tokenizer_of: Tokenizers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ids and weights are not in lists: these take eight bytes for each, and 32 for a number above 256."""
    text = " ".join(f"{number:x}" for number in range(300_000))
    rendered = RenderedText(text=text, spans=(Span(start=0, end=len(text), origin=TEMPLATE),))
    encoder = Encoder(tokenizer_of("bytes"))
    encoder.encode_columns([(rendered, ())])  # what is made once
    peaks = []
    for long in (1 << 20, 1 << 40):  # then, as a negative control, in one part
        monkeypatch.setattr(encoder_module, "LONG_FRAGMENT", long)
        monkeypatch.setattr(assembly, "LONG_FRAGMENT", 1 << 20)
        tracemalloc.start()
        columns = encoder.encode_columns([(rendered, ())])
        peaks.append(tracemalloc.get_traced_memory()[1] / len(columns.input_ids))
        tracemalloc.stop()
    assert peaks[0] < 20 < peaks[1], peaks
