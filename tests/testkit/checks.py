"""The properties of shared/PROPERTIES.md as functions: each raises AssertionError where it does not hold.

They know nothing of how the library cuts and encodes: what a text should decode to, and which control tokens it should
hold, is worked out here anew from the tokenizer's file and the origins of the characters.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import tokenizers

from templatekit import (
    IGNORE_INDEX,
    DataOptions,
    Record,
    Registry,
    RenderedText,
    Template,
    TokenizedExample,
    Tokenizer,
)
from templatekit.pipeline import Pipeline, Prepared
from templatekit.types import TrainOn
from testkit import bundled


@dataclass(frozen=True)
class Case:
    """One record, what became of it, and what a server would be fed."""

    template: Template
    tokenizer: Tokenizer
    record: Record
    prepared: Prepared
    prompt: RenderedText
    prompt_ids: tuple[int, ...]
    train_on: TrainOn = "response"

    @property
    def rendered(self) -> RenderedText:
        return self.prepared.rendered

    @property
    def tokenized(self) -> TokenizedExample:
        assert self.prepared.tokenized is not None
        return self.prepared.tokenized


class Subject:
    """A template and a tokenizer, with pipelines for any adapter."""

    def __init__(self, template: Template, tokenizer: Tokenizer, registry: Registry, **options: Any) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.registry = registry
        self.options = options

    def pipeline(self, adapter: str) -> Pipeline:
        options = DataOptions.parse({"dataset": "none", "adapter": adapter, **self.options})
        return Pipeline(options, self.registry, template=self.template, tokenizer=self.tokenizer)

    def case(self, adapter: str, record: Record) -> Case:
        """Everything about one record; raises what the pipeline raises."""
        pipeline = self.pipeline(adapter)
        (prepared,) = pipeline.run([record])
        return Case(
            template=self.template,
            tokenizer=self.tokenizer,
            record=record,
            prepared=prepared,
            prompt=self.template.prompt(prepared.example, pipeline.special_tokens),
            prompt_ids=pipeline.prompt_ids(prepared.example),
            train_on=pipeline.options.train_on,
        )


# What a tokenizer's file says.


@lru_cache(maxsize=64)
def definition(tokenizer: Tokenizer) -> dict[str, Any]:
    return dict(json.loads(tokenizer.backend(control=True, prefix=True).to_str()))


def parts(stage: dict[str, Any] | None) -> list[dict[str, Any]]:
    if stage is None:
        return []
    nested = stage.get("normalizers") or stage.get("pretokenizers")
    return [part for inner in nested for part in parts(inner)] if nested else [stage]


@lru_cache(maxsize=64)
def added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    return {token["content"]: token for token in definition(tokenizer)["added_tokens"] if token["content"].strip()}


def control_in(tokenizer: Tokenizer, text: str, *, special: bool = True) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Control tokens in a text, leftmost and longest first."""
    for match in pattern_of(tokenizer, special).finditer(text):
        yield match.start(), match.end(), added_tokens(tokenizer)[match[0]]


@lru_cache(maxsize=64)
def pattern_of(tokenizer: Tokenizer, special: bool) -> re.Pattern[str]:
    tokens = [text for text, token in added_tokens(tokenizer).items() if special or not token["special"]]
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")


def control_of(case: Case, rendered: RenderedText) -> list[tuple[int, int, dict[str, Any]]]:
    """The control tokens that a text may hold: those that stand in the template's own runs, and those that are not
    flagged special in one field of an assistant's own text."""
    runs: list[tuple[int, int, bool]] = []
    for span in rendered.spans:
        message = span.origin.message
        role = rendered.roles[message] if message is not None else None
        if span.origin.is_template or (span.origin.field == "role" and role in ("system", "user", "assistant", "tool")):
            if runs and runs[-1][2] and runs[-1][1] == span.start:
                runs[-1] = (runs[-1][0], span.end, True)
            else:
                runs.append((span.start, span.end, True))
        elif role == "assistant" and span.origin.field != "name":
            runs.append((span.start, span.end, False))
    return [
        (start + begin, start + finish, token)
        for start, end, own in runs
        for begin, finish, token in control_in(case.tokenizer, rendered.text[start:end], special=own)
    ]


def edges_of(case: Case) -> list[int]:
    """Where the text is cut: at the boundary of every trained turn, and where the weight changes."""
    return [span.start for span in case.tokenized.loss_spans][1:]


def decoded_text(case: Case, rendered: RenderedText, end: int, cuts: Sequence[int]) -> str:
    """What the ids of `rendered.text[:end]` should decode to: the text, but for what the tokenizer declares to change:
    NFC, the blank U+2581, dummy prefixes, and whitespace that control tokens take."""
    control = [entry for entry in control_of(case, rendered) if entry[1] <= end]
    borders = sorted({0, end, *(cut for cut in cuts if cut < end), *(at for a, b, _ in control for at in (a, b))})
    starts = {start: token for start, _, token in control}
    after = {finish: token for _, finish, token in control}
    normalizers = parts(definition(case.tokenizer)["normalizer"])
    splitters = parts(definition(case.tokenizer)["pre_tokenizer"])
    kinds = {part["type"] for part in normalizers}
    metaspace = next((part for part in splitters if part["type"] == "Metaspace"), None)
    pieces = []

    def behind(place: int) -> bool:
        """Whether nothing stands before it but a control token, and whitespace that this token takes."""
        kept = re.sub(r"[^\S\x1c-\x1f]+\Z", "", rendered.text[:place])
        return place in after or (len(kept) in after and bool(after[len(kept)]["rstrip"]))

    for start, stop in itertools.pairwise(borders):
        piece = rendered.text[start:stop]
        if start in starts:
            pieces.append(piece)
            continue
        if start in after and after[start]["rstrip"] and start not in cuts:
            piece = re.sub(r"\A[^\S\x1c-\x1f]+", "", piece)
        if stop in starts and starts[stop]["lstrip"] and stop not in cuts:
            piece = re.sub(r"[^\S\x1c-\x1f]+\Z", "", piece)
        if "NFC" in kinds:
            piece = unicodedata.normalize("NFC", piece)
        first = start == 0
        if metaspace or any(part.get("content") == "▁" for part in normalizers):
            piece = piece.replace("▁", " ")
        if piece and ("Prepend" in kinds or metaspace):
            scheme = metaspace["prepend_scheme"] if metaspace else "always"
            blank = not (metaspace and piece.startswith(" "))
            # The decoder takes the very first blank away again.
            if (first or behind(start)) and blank and (scheme == "always" or (scheme == "first" and first)):
                piece = " " + piece
        pieces.append(piece)
    text = "".join(pieces)
    return text[1:] if ("Prepend" in kinds or metaspace) and text.startswith(" ") else text


def runs_of(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """The runs of true values."""
    edges = [i for i in range(len(flags) + 1) if (i > 0 and flags[i - 1]) != (i < len(flags) and flags[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


# The properties, under their numbers.


def deterministic_2(one: Case, other: Case) -> None:
    assert one.tokenized.input_ids == other.tokenized.input_ids
    assert one.tokenized.labels == other.tokenized.labels
    assert one.tokenized.loss_weights == other.tokenized.loss_weights
    assert one.rendered.text == other.rendered.text


def pure_3(before: Record, after: Record) -> None:
    assert json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)


def lengths_and_ids_4(case: Case) -> None:
    tokenized = case.tokenized
    assert len(tokenized.input_ids) == len(tokenized.labels) == len(tokenized.loss_weights) == len(tokenized)
    assert min(tokenized.input_ids) >= 0 and max(tokenized.input_ids) < case.tokenizer.vocabulary_size
    assert all(label in (IGNORE_INDEX, id) for label, id in zip(tokenized.labels, tokenized.input_ids, strict=True))
    assert tokenized.trained_tokens == sum(label != IGNORE_INDEX for label in tokenized.labels)


def batch_is_single_5(singles: Sequence[Case], batch: Sequence[Prepared]) -> None:
    assert len(singles) == len(batch)
    for case, prepared in zip(singles, batch, strict=True):
        assert prepared.tokenized is not None
        assert case.tokenized.input_ids == prepared.tokenized.input_ids
        assert case.tokenized.loss_weights == prepared.tokenized.loss_weights
        assert case.rendered.text == prepared.rendered.text


def is_lossless(case: Case) -> bool:
    """Whether the tokenizer can give the text back: SmolLM2's lacks pieces for some bytes."""
    missing = missing_bytes(case.tokenizer)
    return not missing or missing.isdisjoint(case.rendered.text.encode())


@lru_cache(maxsize=64)
def missing_bytes(tokenizer: Tokenizer) -> frozenset[int]:
    stage = definition(tokenizer)["pre_tokenizer"]
    if not any(part["type"] == "ByteLevel" for part in parts(stage)):
        return frozenset()
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = definition(tokenizer)["model"]["vocab"]
    found = set()
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000 and (code < 0x800 or code % 64 == 0):
            text = chr(code)
            pieces = byte_level.pre_tokenize_str(text)[0][0]
            found |= {b for b, piece in zip(text.encode(), pieces, strict=True) if piece not in vocabulary}
    return frozenset(found)


def decodes_8(case: Case) -> None:
    rendered = case.rendered
    if not is_lossless(case):
        return
    decoded = case.tokenizer.decode(case.tokenized.input_ids)
    assert decoded == decoded_text(case, rendered, len(rendered.text), edges_of(case))
    prompt = case.prompt
    assert case.tokenizer.decode(case.prompt_ids) == decoded_text(case, prompt, len(prompt.text), ())


def fields_stand_unchanged_9(case: Case) -> None:
    """Each field at its recorded span; what a template trims is a declared exception."""
    rendered, example = case.rendered, case.prepared.example
    for index, message in enumerate(example.messages):
        for field in ("content", "context"):
            spans = [s for s in rendered.spans if (s.origin.message, s.origin.field) == (index, field)]
            value = getattr(message, field)
            if not bundled.keeps(case.template.name, message):
                assert all(rendered.text[s.start : s.end] in value for s in spans)
                printed = bool(bundled.own_answer(case.template.name, value))
                assert bool(spans) == printed or (message.content and message.context)
                continue
            assert [rendered.text[s.start : s.end] for s in spans] == ([value] if value else [])


def prints_no_none_11(case: Case) -> None:
    template = "".join(case.rendered.text[s.start : s.end] for s in case.rendered.spans if s.origin.kind != "field")
    assert not re.search(r"None|\bnan\b|undefined", template)


def trains_what_was_asked_13_15(case: Case, expected: Sequence[tuple[int, int]]) -> None:
    """The trained ids are those of the expected characters: no token holds characters of two train flags."""
    if not is_lossless(case):
        return
    cuts = edges_of(case)
    trained = runs_of([bool(weight) for weight in case.tokenized.loss_weights])
    want = [(a, b) for a, b in merged(expected) if piece_ids(case, a, b)]
    ids = case.tokenized.input_ids
    assert len(trained) == len(want), (trained, want)
    for (first, last), (start, end) in zip(trained, want, strict=True):
        for at, place in ((first, start), (last, end)):
            assert case.tokenizer.decode(ids[:at]) == decoded_text(case, case.rendered, place, [*cuts, place])


def piece_ids(case: Case, start: int, end: int) -> bool:
    """Whether any id stands for these characters: whitespace may be taken by a control token."""
    whole = [*edges_of(case), start, end]
    return decoded_text(case, case.rendered, end, whole) != decoded_text(case, case.rendered, start, whole)


def merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def targets_of(case: Case) -> list[tuple[int, int]]:
    """The characters that `case.train_on` asks for, by the origins of the characters."""
    rendered = case.rendered
    targets = [t for t in rendered.target_spans if rendered.message_weights[t.message]]
    if case.train_on == "all":
        return [(0, len(rendered.text))]
    if case.train_on == "last":
        targets = [t for t in targets if t.message == max(t.message for t in rendered.target_spans)]
    if case.train_on in ("response", "last"):
        return [(t.start, t.end) for t in targets]
    own = [
        (s.start, s.end)
        for t in targets
        for s in rendered.spans
        if s.origin.message == t.message and s.origin.field == "content" and t.start <= s.start < t.marker_start
    ]
    return [*own, *((t.marker_start, t.end) for t in targets)]


def text_starts_with_prompt_16(case: Case) -> None:
    assert case.rendered.text.startswith(case.prompt.text)
    assert case.rendered.target_spans[-1].start == len(case.prompt.text)


def ids_start_with_prompt_17(case: Case) -> None:
    assert case.tokenized.input_ids[: len(case.prompt_ids)] == case.prompt_ids


def labels_begin_behind_the_prompt_18(case: Case) -> None:
    labels, count = case.tokenized.labels, len(case.prompt_ids)
    assert all(label == IGNORE_INDEX for label in labels[:count])
    assert count < len(labels)
    assert labels[count] == case.tokenized.input_ids[count]


def end_marker_is_trained_19(case: Case, stops: Any) -> None:
    """Once a turn, whole, and known to whoever generates."""
    rendered = case.rendered
    for target in rendered.target_spans:
        marker = rendered.text[target.marker_start : target.end]
        assert marker
        assert any(marker.endswith(text) for text in stop_texts(case.tokenizer, stops))
        weights = {span.weight for span in case.tokenized.loss_spans if marks(span, target.marker_start, target.end)}
        trained = case.train_on != "last" or target.message == rendered.target_spans[-1].message
        assert weights == {rendered.message_weights[target.message] if trained else 0.0}
    behind = [span for span in case.tokenized.loss_spans if span.start >= rendered.target_spans[-1].end]
    assert all(span.weight == 0 for span in behind) or case.train_on == "all"


def marks(span: Any, start: int, end: int) -> bool:
    return bool(span.start < end and start < span.end)


def stop_texts(tokenizer: Tokenizer, stops: Any) -> list[str]:
    return [*stops.strings, *(tokenizer.decode([id]) for id in stops.ids)]


def bos_20(case: Case) -> None:
    """BOS at index 0 or nowhere, but where the same token ends the text (GPT-2) or begins turns (SmolLM2)."""
    tokens = case.tokenizer.special_tokens
    bos = case.tokenizer.id_of(tokens.bos) if tokens.bos else None
    if bos is None:
        return
    places = [index for index, id in enumerate(case.tokenized.input_ids) if id == bos]
    if case.template.kind == "instruction":
        own = [len(case.tokenized) - 1] if tokens.bos == tokens.eos and case.template.name != "dolly" else []
        assert places == ([0] if tokens.adds_bos else []) + own
    elif case.template.name in bundled.BEGINS:
        assert places[0] == 0
        again = case.rendered.roles.count("user") - 1 if case.template.name == "llama2" else 0
        assert len(places) == 1 + again or tokens.bos == tokens.eos
    elif tokens.bos not in ("<|im_start|>", "<|im_end|>", tokens.eos):
        assert places == []


def control_ids_of(case: Case, ids: Sequence[int]) -> list[int]:
    """The control ids among ids; the unknown token counts where a text could have been encoded without it."""
    control = {token["id"] for token in added_tokens(case.tokenizer).values()}
    return [id for id in ids if id in control and id != unknown_of(case)]


def unknown_of(case: Case) -> int | None:
    """The unknown token; None where it is one that means something, as GPT-2's end of text."""
    tokens = case.tokenizer.special_tokens
    return None if tokens.unk in (tokens.bos, tokens.eos) else case.tokenizer.id_of(tokens.unk)


def control_is_the_templates_21(case: Case) -> None:
    unknown = unknown_of(case)
    for rendered, ids in ((case.rendered, case.tokenized.input_ids), (case.prompt, case.prompt_ids)):
        expected = [token["id"] for _, _, token in control_of(case, rendered)]
        assert control_ids_of(case, ids) == [id for id in expected if id != unknown]


def other_text_changes_no_control_22(neutral: Case, nasty: Case) -> None:
    """Both cases are one conversation, with nasty text in place of neutral text in one of them."""
    assert control_ids_of(nasty, nasty.tokenized.input_ids) == control_ids_of(neutral, neutral.tokenized.input_ids)


def labels_are_unmoved_24(neutral: Case, marked: Case) -> None:
    """The trained ids are the same, whatever markers the untrained fields hold."""

    def trained(case: Case) -> list[int]:
        return [label for label in case.tokenized.labels if label != IGNORE_INDEX]

    assert trained(neutral) == trained(marked)


def is_canonical_25(case: Case) -> bool:
    """Whether plain encoding of the whole text has to give the same ids: it holds no control text but the template's,
    and neither its tokens nor its words straddle a cut."""
    text, cuts = case.rendered.text, edges_of(case)
    if not holds_no_control_but_the_templates(case):
        return False
    backend = case.tokenizer.backend(control=True, prefix=True)
    straddled = (cut for cut in cuts for a, b in backend.encode(text, add_special_tokens=False).offsets if a < cut < b)
    return next(straddled, None) is None and all(words_part_at(backend, text, cut) for cut in cuts)


def holds_no_control_but_the_templates(case: Case) -> bool:
    """Neither as it is, nor after the tokenizer's own normalizer."""
    own = control_of(case, case.rendered)
    normalizer = case.tokenizer.backend(control=True, prefix=True).normalizer
    normalized = normalizer.normalize_str(case.rendered.text) if normalizer else case.rendered.text
    found = list(control_in(case.tokenizer, case.rendered.text))
    return found == own and len(list(control_in(case.tokenizer, normalized))) == len(own)


def words_part_at(backend: tokenizers.Tokenizer, text: str, cut: int) -> bool:
    """Whether the tokenizer's words are the same with the text cut here."""
    if backend.pre_tokenizer is None:
        return True

    def words(text: str) -> list[str]:
        normalized = backend.normalizer.normalize_str(text) if backend.normalizer else text
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]

    near = slice(max(0, cut - 50), cut + 50)
    return words(text[near]) == words(text[near.start : cut]) + words(text[cut : near.stop])


def agrees_with_plain_encoding_25(case: Case) -> None:
    backend = case.tokenizer.backend(control=True, prefix=True)
    assert list(case.tokenized.input_ids) == backend.encode(case.rendered.text, add_special_tokens=False).ids


def is_prefix_stable_27(part: Case, whole: Case) -> None:
    ids = part.tokenized.input_ids
    assert whole.tokenized.input_ids[: len(ids)] == ids


def masks_agree_28(single: Case, whole: Case, turn: int) -> None:
    """The mask of a turn in the whole conversation is that of the conversation up to it, trained on its last turn."""
    whole_runs = runs_of([bool(weight) for weight in whole.tokenized.loss_weights])
    (first, last) = runs_of([bool(weight) for weight in single.tokenized.loss_weights])[-1]
    start, end = whole_runs[turn]
    assert whole.tokenized.input_ids[start:end] == single.tokenized.input_ids[first:last]
    assert whole.tokenizer.decode(whole.tokenized.input_ids[:start]) == single.tokenizer.decode(
        single.tokenized.input_ids[:first]
    )
