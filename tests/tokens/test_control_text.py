"""Control tokens in the data are ordinary text, from whatever field and with whatever tokenizer; and the exceptions."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import tokenizers
from hypothesis import assume, event, given
from hypothesis import strategies as st
from testkit.by_hand import ALPHABET, byte_tokenizer, rendered, with_tokens
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from templatekit import LossSpan, Registry, RenderedText, TemplateFile, Tokenizer, TokenizerError
from templatekit.formats.template import Template
from templatekit.testing import CHECKS, Subject, adversarial_text, oracle, texts
from templatekit.testing.checked_record import CheckedRecord
from templatekit.tokens.encoder import Encoder
from templatekit.types import TEMPLATE, field_origin

USER, OTHER = field_origin("content", 0), field_origin("context", 0)
Draw = st.DataObject


# Fields of every kind, next to each other


class Place(NamedTuple):
    """A text of a record, and how a template prints it."""

    name: str
    printed: str
    path: tuple[Any, ...]
    """The path of the text in the record."""


TOOL = (
    Place("tool name", "{{ tools[0].function.name }}", ("tools", 0, "function", "name")),
    Place("tool description", "{{ tools[0].function.description }}", ("tools", 0, "function", "description")),
    Place("tool parameter", "{{ tools[0].function.parameters.p }}", ("tools", 0, "function", "parameters", "p")),
    Place("document", "{{ documents[0].text }}", ("documents", 0, "text")),
)
ASKED = (
    Place("role", "{{ messages[0].role }}", ("messages", 0, "role")),
    Place("name", "{{ messages[0].name }}", ("messages", 0, "name")),
    Place("content", "{{ messages[0].content }}", ("messages", 0, "content")),
    Place("call id", "{{ messages[0].tool_call_id }}", ("messages", 0, "tool_call_id")),
)
CALL = ("messages", 1, "tool_calls", 0, "function")
ANSWERED = (
    Place("reasoning", "{{ messages[1].reasoning_content }}", ("messages", 1, "reasoning_content")),
    Place("answer", "{{ messages[1].content }}", ("messages", 1, "content")),
    Place("call", "{{ messages[1].tool_calls[0].function.name }}", (*CALL, "name")),
    Place("argument", "{{ messages[1].tool_calls[0].function.arguments.a }}", (*CALL, "arguments", "a")),
)


def record(**filled: str) -> dict[str, Any]:
    """A conversation with a text in every place; `texts` gives some of them by the place's name."""
    made: dict[str, Any] = {
        "messages": [
            {"role": "user", "name": "n", "content": "c", "tool_call_id": "i"},
            {
                "role": "assistant",
                "content": "a",
                "reasoning_content": "r",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": "v"}}}],
            },
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"p": "q"}}}],
        "documents": [{"text": "t"}],
    }
    for place in (*TOOL, *ASKED, *ANSWERED):
        if place.name in filled:
            at: Any = made
            for key in place.path[:-1]:
                at = at[key]
            at[place.path[-1]] = filled[place.name]
    return made


def template_of(prompt: Sequence[Place], answer: Sequence[Place], between: str = "") -> Template:
    """A chat template that prints the places in order, with only `between` between them."""
    asked = between.join(place.printed for place in prompt)
    answered = between.join(place.printed for place in answer)
    end = "{% if not add_generation_prompt %}" + answered + "{{ eos_token }}{% endif %}"
    return Template(TemplateFile(name="adjacent", source=asked + between + end))


CONTROL_IDS = CHECKS["control_ids_are_the_templates"]


def case_of(template: Template, tokenizer: Tokenizer, registry: Registry, **filled: str) -> CheckedRecord:
    return made_of(template, tokenizer, registry, "messages", record(**filled))


def made_of(
    template: Template, tokenizer: Tokenizer, registry: Registry, adapter: str, made: Any, **options: Any
) -> CheckedRecord:
    parts: dict[str, Any] = {"adapter": registry.adapters[adapter], "template": template}
    return CheckedRecord(Subject(**parts, tokenizer=tokenizer, registry=registry, **options), made)


def control_ids_of(case: CheckedRecord, ids: Sequence[int] | None = None) -> list[int]:
    """The control ids among `ids`, by default those of the case."""
    return oracle.control_ids(case.subject.tokenizer, case.whole.tokenized.input_ids if ids is None else ids)


def controls(tokenizer: Tokenizer) -> list[str]:
    return [text for text in texts.control_strings(tokenizer) if text in tokenizer.control_tokens]


def only_the_end(case: CheckedRecord) -> None:
    """Whether the only control id is that of the end marker, which the template prints once."""
    tokenizer = case.subject.tokenizer
    assert control_ids_of(case) == [tokenizer.id_of(tokenizer.special_tokens.eos)]
    assert control_ids_of(case, case.whole.prompt_ids) == []


def halves_in(places: Sequence[Place], text: str, at: int) -> Iterator[dict[str, str]]:
    """The text cut in two across each pair of neighbouring places; tool calls are one field, whatever is in them."""
    for left, right in pairwise(places):
        if left.path[: len(CALL)] != right.path[: len(CALL)]:
            yield {left.name: f"nobody{text[:at]}", right.name: f"{text[at:]}nobody"}


@given(data=st.data())
def test_23_halves_never_join_across_fields(tokenizer: Tokenizer, builtin: Registry, data: Draw) -> None:
    """Halves in any adjacent fields: role, name, content, reasoning, tool calls, tool definitions, in any order."""
    prompt = data.draw(st.permutations([*TOOL, *ASKED]), label="prompt")
    answer = data.draw(st.permutations(ANSWERED), label="answer")
    text = data.draw(st.sampled_from([text for text in controls(tokenizer) if len(text) > 1]), label="control")
    at = data.draw(st.integers(1, len(text) - 1), label="at")
    filled = data.draw(st.sampled_from(list(halves_in([*prompt, *answer], text, at))), label="filled")
    case = case_of(template_of(prompt, answer), tokenizer, builtin, **filled)
    assert text in case.whole.rendered.text
    CONTROL_IDS.attempt(case)
    only_the_end(case)


def test_23_every_cut_of_every_control_string(tokenizer_of: Any, builtin: Registry) -> None:
    tokenizer = tokenizer_of("nfc")
    template = template_of([*TOOL, *ASKED], ANSWERED)
    for text in tokenizer.control_tokens:
        for at in range(1, len(text)):
            for filled in halves_in([*TOOL, *ASKED, *ANSWERED], text, at):
                only_the_end(case_of(template, tokenizer, builtin, **filled))


@given(data=st.data())
def test_21_22_control_strings_in_any_place(tokenizer: Tokenizer, builtin: Registry, data: Draw) -> None:
    """They change no control id, alone or together; only an assistant's text may use tokens not flagged special."""
    between = data.draw(st.sampled_from(["", "\n", " ", ": "]), label="between")
    template = template_of([*TOOL, *ASKED], ANSWERED, between)
    special = [text for text in controls(tokenizer) if tokenizer.control_tokens[text].special]
    filled = {}
    for place in data.draw(st.lists(st.sampled_from([*TOOL, *ASKED, *ANSWERED]), min_size=1, max_size=4, unique=True)):
        pool = special if place in ANSWERED else controls(tokenizer)
        nasty = st.lists(st.sampled_from([*pool, *texts.halves(pool), " ", "\n", "a"]), min_size=1, max_size=4)
        filled[place.name] = "nobody" + data.draw(nasty.map("".join), label=place.name)
    if any(holds_open(tokenizer, filled.get(place.name, "")) for place in ANSWERED):
        assume(False)
    case = case_of(template, tokenizer, builtin, **filled)
    CONTROL_IDS.attempt(case)
    only_the_end(case)


def holds_open(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text contains an added token that is not flagged special: two halves may form one."""
    return any(text.count(token.text) for token in tokenizer.control_tokens.values() if not token.special)


def test_23_content_parts_do_not_join(tokenizer_of: Any, builtin: Registry) -> None:
    """Parts of a user's content, printed with nothing between them."""
    source = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
        "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    template = Template(TemplateFile(name="parts", source=source))
    for name in ("nfc", "strips", "qwen3"):
        tokenizer = tokenizer_of(name)
        for text in controls(tokenizer):
            parts = [{"type": "text", "text": part} for part in ("a", text[:2], text[2:], text)]
            made = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}]}
            case = made_of(template, tokenizer, builtin, "messages", made)
            assert case.whole.rendered.text.startswith(f"a{text}{text}b")
            only_the_end(case)


AS_JSON = (
    "{% for given in tools + documents %}{{ given | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.name ~ ':' if m.name else '' }}"
    "{{ m.reasoning_content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ '\n' ~ c.function.name ~ '(' ~ c.function.arguments | tojson ~ ')' }}"
    "{% for key, value in c.function.arguments | items %}{{ key }}={{ value }};{% endfor %}{% endfor %}"
    "{{ m.content + '<|im_end|>' }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@given(data=st.data())
def test_22_keys_and_values_of_tools(tokenizer_of: Any, builtin: Registry, data: Draw) -> None:
    """Through `tojson`, concatenation and `items`, as keys and as values, however deep: the control ids of the record
    with other text there."""
    tokenizer = tokenizer_of(data.draw(st.sampled_from(["bytes", "nfc", "strips", "folding"]), label="tokenizer"))
    special = [text for text in controls(tokenizer) if tokenizer.control_tokens[text].special]
    pools = {"calls": special, "tools": controls(tokenizer)}

    def json_of(pool: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        text = st.lists(st.sampled_from([*pool, "a", '"', "\\", "é", "</"]), max_size=3).map("".join)
        leaf = text | st.integers() | st.booleans()  # null prints None, which is refused
        values = st.recursive(
            leaf, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2)
        )
        return st.dictionaries(text, values, max_size=3)

    drawn = {name: data.draw(json_of(pool), label=name) for name, pool in pools.items()}
    assume(not holds_open(tokenizer, json.dumps(drawn["calls"], ensure_ascii=False)))
    nasty, neutral = record(), record()
    for made, arguments, parameters in ((nasty, drawn["calls"], drawn["tools"]), (neutral, {"a": 1}, {"p": 1})):
        made["messages"][1]["tool_calls"][0]["function"]["arguments"] = arguments
        made["tools"][0]["function"]["parameters"] = parameters
    template = Template(TemplateFile(name="json", source=AS_JSON), strict=False)
    one, other = (made_of(template, tokenizer, builtin, "messages", made) for made in (neutral, nasty))
    assert control_ids_of(other) == control_ids_of(one)
    CONTROL_IDS.attempt(other)


def test_negative_control_of_places(tokenizer_of: Any, builtin: Registry) -> None:
    """A tokenizer that parses the whole text finds what was hidden in each place, and across each pair of them."""
    tokenizer = tokenizer_of("nfc")
    template = template_of([*TOOL, *ASKED], ANSWERED)
    options = {"control_tokens": "everywhere", "boundary": "joint"}
    fillings = [{place.name: "nobody<|im_end|>"} for place in (*TOOL, *ASKED, *ANSWERED)]
    fillings += halves_in([*TOOL, *ASKED], "<|im_end|>", 4)
    for filled in fillings:
        with pytest.raises(AssertionError):
            only_the_end(made_of(template, tokenizer, builtin, "messages", record(**filled), **options))


# Tokenizers that change text before they look for control tokens, or that make control tokens of text


CONTROL = ("<halt>", "</s>", "<|a b|>", "stop", "<cafe\u0301>", "<\u00e9>", "fi<")
NORMALIZERS: dict[str, Callable[[], Any]] = {
    "NFC": normalizers.NFC,
    "NFD": normalizers.NFD,
    "NFKC": normalizers.NFKC,
    "NFKD": normalizers.NFKD,
    "Lowercase": normalizers.Lowercase,
    "StripAccents": normalizers.StripAccents,
    "Strip": normalizers.Strip,
    "Nmt": normalizers.Nmt,
    "Bert": normalizers.BertNormalizer,
    "Prepend": lambda: normalizers.Prepend("▁"),
    "blank": lambda: normalizers.Replace(" ", "▁"),
    "unblank": lambda: normalizers.Replace("▁", " "),
    "delete": lambda: normalizers.Replace("\u00ad", ""),
}
"""The normalizers that may change a text before the search for control tokens."""


def byte_model() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=dict(ALPHABET), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def merging_model() -> tokenizers.Tokenizer:
    """BPE whose merges make the control tokens of plain characters."""
    vocab, merges = {"<unk>": 0}, []
    for text in CONTROL:
        for at, character in enumerate(text):
            vocab.setdefault(character, len(vocab))
            if at:
                merges.append((text[:at], character))
                vocab.setdefault(text[: at + 1], len(vocab))
    for character in "▁ abcxyz\n":
        vocab.setdefault(character, len(vocab))
    return tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True))


def unigram_model() -> tokenizers.Tokenizer:
    """Unigram with the control tokens among its pieces."""
    characters = sorted({character for text in CONTROL for character in text} | set("▁ abcxyz\n"))
    pieces = [("<unk>", 0.0), *((text, -2.0) for text in CONTROL), *((text, -9.0) for text in characters)]
    return tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))


def word_model() -> tokenizers.Tokenizer:
    """Whole words, one of which is a control token."""
    words = ["<unk>", "stop", "halt", "a", "b", "x", "<", ">", "|", "</", "s"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


MODELS = {"bytes": byte_model, "merging": merging_model, "unigram": unigram_model, "words": word_model}


@st.composite
def odd_tokenizers(draw: st.DrawFn) -> Tokenizer:
    backend = MODELS[draw(st.sampled_from(sorted(MODELS)), label="model")]()
    steps = draw(st.lists(st.sampled_from(sorted(NORMALIZERS)), max_size=3), label="normalizers")
    if steps:
        backend.normalizer = normalizers.Sequence([NORMALIZERS[step]() for step in steps])
    added = []
    for text in draw(st.lists(st.sampled_from(CONTROL), min_size=1, max_size=4, unique=True), label="control"):
        flags = {flag: draw(st.booleans()) for flag in ("special", "normalized")}
        flags |= {flag: draw(st.sampled_from([False, False, True])) for flag in ("lstrip", "rstrip", "single_word")}
        added.append(AddedToken(text, **flags))
    blanks = draw(st.lists(st.sampled_from(["  ", "\n\n"]), max_size=2, unique=True), label="blanks")
    return with_tokens(backend, [*added, *(AddedToken(text, special=False, normalized=False) for text in blanks)])


def in_full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def disguises(text: str) -> list[str]:
    """Texts that some normalizer turns into the given text, and texts beside which the given text is not found."""
    forms = [text, text.upper(), text.title(), in_full_width(text), in_full_width(text.upper())]
    forms += [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    forms += [text.replace(" ", "▁"), text.replace("fi", "ﬁ"), text.replace("a", "á"), text.replace("s", "ſ")]
    forms += [f"{text[:1]}{odd}{text[1:]}" for odd in ("\u00ad", "\x00", "\u200b", "\u0301", "\ufffe")]
    forms += [f" {text}", f"▁{text}", f"{text}\u0338", f"\u0338{text}", f"{text}a", f"{text} "]
    return list(dict.fromkeys(forms))


PLAIN = ["a", "b ", " x", "\n", "  ", "\u0338", "\u0301", "\u0338 b", "▁", "yz", "\ufffe260\uffff"]


@st.composite
def odd_texts(draw: st.DrawFn) -> RenderedText:
    """Alternating template text and data: control tokens as the template writes them, and as data may disguise them."""
    nasty = [form for text in CONTROL for form in disguises(text)]
    data = st.lists(st.sampled_from(nasty) | st.sampled_from(PLAIN), max_size=3).map("".join)
    written = st.lists(st.sampled_from([*CONTROL, "a", "Q: ", "\n"]), max_size=2).map("".join)
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        parts += [(draw(written), TEMPLATE), (draw(data), USER), (draw(data), OTHER)]
    return rendered(*parts, (draw(written), TEMPLATE))


def expected_ids(tokenizer: Tokenizer, text: RenderedText, cut: int = 0) -> list[int]:
    """The ids of control tokens that the template's runs contain literally. Tokens that must be whole words count where
    they are words in the text before or after the cut.
    """
    tokens = sorted(tokenizer.control_tokens.values(), key=lambda token: -len(token.text))
    pattern = re.compile("|".join(re.escape(token.text) for token in tokens))
    runs: list[tuple[int, int]] = []
    for span in text.spans:
        if span.origin is not TEMPLATE:
            continue
        start = runs.pop()[0] if runs and runs[-1][1] == span.start else span.start
        runs.append((start, span.end))
    found = []
    for match in (match for start, end in runs for match in pattern.finditer(text.text, start, end)):
        token = tokenizer.control_tokens[match[0]]
        first, last = (0, cut) if match.end() <= cut else (cut, len(text.text))
        if not token.whole_word or is_whole_word(text.text[first:last], match.start() - first, token.text):
            found.append(token.id)
    return found


def is_whole_word(piece: str, at: int, word: str) -> bool:
    """Ask a tokenizer that has only this token."""
    tokenizer = byte_tokenizer(AddedToken(word, special=True, single_word=True, normalized=False))
    before = piece[max(at - 1, 0) : at]
    near = piece[at - len(before) : at + len(word) + 1]
    encoding = tokenizer.backend(control=True, prefix=True).encode(near)
    (id,) = tokenizer.control_ids
    places = zip(encoding.ids, encoding.offsets, strict=True)
    return any(found == id and start == len(before) for found, (start, _) in places)


def control_of_odd(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [id for id in ids if id in tokenizer.control_ids and id != tokenizer.unknown_id]


@given(tokenizer=odd_tokenizers(), text=odd_texts(), data=st.data())
def test_21_no_disguise_acts(tokenizer: Tokenizer, text: RenderedText, data: Draw) -> None:
    """No disguised control token acts, whatever a normalizer or the model itself makes of it."""
    cut = data.draw(st.integers(0, len(text.text)), label="cut")
    spans = [LossSpan(start=0, end=cut, weight=0.0), LossSpan(start=cut, end=len(text.text), weight=1.0)]
    cut = 0 if any(span.start < cut < span.end for span in text.spans if span.origin is TEMPLATE) else cut
    try:
        ids = Encoder(tokenizer).encode(text, spans if cut else ()).input_ids
    except TokenizerError as error:
        event(str(error)[:40])
        assert "makes a control token of" in str(error)
        return
    assert control_of_odd(tokenizer, ids) == expected_ids(tokenizer, text, cut)


@given(tokenizer=odd_tokenizers(), text=odd_texts())
def test_21_no_disguise_acts_in_joint_encoding(tokenizer: Tokenizer, text: RenderedText) -> None:
    try:
        example = Encoder(tokenizer, boundary="joint").encode(text)
    except TokenizerError:
        return
    assert control_of_odd(tokenizer, example.input_ids) == expected_ids(tokenizer, text)


def test_data_does_not_replace_a_token_that_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A combining mark after the template's own token hides the token from the tokenizer (`>` and U+0338 become one
    character), while `<HALT>` in the same text becomes a control token: the count of control ids is right, but their
    positions are wrong.
    """
    backend = byte_model()
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer = with_tokens(backend, [AddedToken("<halt>", special=True, normalized=True)])
    text = rendered(("<halt>", TEMPLATE), ("\u0338 say <HALT>", USER))
    (halt,) = tokenizer.control_ids
    ids = Encoder(tokenizer).encode(text).input_ids
    assert ids[0] == halt and ids.count(halt) == 1
    # The negative control: a check of the count alone does not notice this.
    monkeypatch.setattr(tokenizer, "has_ambiguous_control_ids", False)
    counted = Encoder(tokenizer).encode(text).input_ids
    assert counted.count(halt) == 1 and counted[0] != halt


def test_a_token_that_its_normalizer_empties_is_refused() -> None:
    """The library panics on such a tokenizer, or uses all memory."""
    backend = byte_model()
    backend.normalizer = normalizers.Strip()
    with_tokens(backend, [AddedToken("\n", special=False, normalized=False)])
    with pytest.raises(
        TokenizerError, match=r"leaves nothing of the added token '\\n\\n' \(257\); expected a token with"
    ):
        with_tokens(backend, [AddedToken("\n\n", special=False, normalized=True)])


def test_negative_control_of_disguises() -> None:
    """The unchanged tokenizer takes each of these for a control token, and so does the encoder without its checks."""
    backend = byte_model()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer = with_tokens(backend, [AddedToken("<halt>", special=True, normalized=True)])
    for disguise in ("<HALT>", "＜ｈａｌｔ＞", "<Halt>"):
        text = rendered(("a", TEMPLATE), (disguise, USER))
        assert expected_ids(tokenizer, text) == []
        assert control_of_odd(tokenizer, Encoder(tokenizer).encode(text).input_ids) == []
        assert control_of_odd(tokenizer, Encoder(tokenizer, control_tokens="everywhere").encode(text).input_ids) != []


# Text that may act


OWN = "Q{{ instruction }}{{ context }}:{{ response }}{{ eos_token }}"


def as_the_tokenizer(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.backend(control=True, prefix=True).encode(text, add_special_tokens=False).ids
    return ids


def nasty_record(data: Draw, tokenizer: Tokenizer) -> dict[str, str]:
    nasty = adversarial_text(tokenizer)
    return {key: data.draw(nasty, label=key) for key in ("instruction", "input")} | {
        "output": "x" + data.draw(nasty, label="output")
    }


@given(data=st.data())
def test_everywhere_is_what_the_tokenizer_makes_of_it(tokenizer: Tokenizer, builtin: Registry, data: Draw) -> None:
    """Joint encoding gives the ids of the whole text; `cut` those of fragments, cut only where the loss changes."""
    template = Template(
        TemplateFile(name="own", source="Q{{ instruction }}{{ context }}:{{ response }}{{ eos_token }}")
    )
    train_on = data.draw(st.sampled_from(["response", "content", "all", "response,user=0.5"]), label="train_on")
    options = {"control_tokens": "everywhere", "train_on": train_on}
    made = nasty_record(data, tokenizer)
    joint = made_of(template, tokenizer, builtin, "alpaca", made, boundary="joint", **options).whole
    assert list(joint.tokenized.input_ids) == as_the_tokenizer(tokenizer, joint.rendered.text)
    case = made_of(template, tokenizer, builtin, "alpaca", made, **options)
    cut = case.whole
    pieces = [cut.rendered.text[span.start : span.end] for span in cut.tokenized.loss_spans]
    parts = [as_the_tokenizer(tokenizer, piece) for piece in pieces]
    weights = [span.weight for span, part in zip(cut.tokenized.loss_spans, parts, strict=True) for _ in part]
    if tokenizer.dummy_prefix == "never":
        assert list(cut.tokenized.input_ids) == [id for part in parts for id in part]
        assert cut.tokenized.loss_weights[1:] == tuple(weights[1:])
    else:  # a fragment that continues another has no dummy prefix
        assert control_ids_of(case) == [id for part in parts for id in control_ids_of(case, part)]
    CHECKS["ids_labels_and_weights_agree"].attempt(case)


@given(data=st.data())
def test_everywhere_changes_nothing_where_no_text_would_act(
    tokenizer: Tokenizer, builtin: Registry, data: Draw
) -> None:
    template = Template(
        TemplateFile(name="own", source="Q{{ instruction }}{{ context }}:{{ response }}{{ eos_token }}")
    )
    made = nasty_record(data, tokenizer)
    usual, acting = (
        made_of(template, tokenizer, builtin, "alpaca", made, control_tokens=control_tokens).whole
        for control_tokens in ("template", "everywhere")
    )
    assume(oracle.has_only_expected_control_tokens(tokenizer, usual.rendered))
    assert acting.tokenized == usual.tokenized


def test_negative_control_of_everywhere(tokenizer_of: Any, builtin: Registry) -> None:
    """With the default the same text does not act, so that the two modes and the two oracles tell each other apart."""
    template = Template(TemplateFile(name="own", source=OWN))
    made = {"instruction": "say <|im_end|>", "input": "", "output": "x<|im_end|>y"}
    for name in ("bytes", "nfc", "qwen3", "smollm2"):
        tokenizer = tokenizer_of(name)
        usual, acting = (
            made_of(template, tokenizer, builtin, "alpaca", made, boundary="joint", control_tokens=control_tokens)
            for control_tokens in ("template", "everywhere")
        )
        found = list(usual.whole.tokenized.input_ids)
        assert found != as_the_tokenizer(tokenizer, usual.whole.rendered.text)
        CONTROL_IDS.attempt(usual)
        with pytest.raises(AssertionError):
            CONTROL_IDS.attempt(acting)


def test_a_marker_across_a_cut_stays_text(builtin: Registry) -> None:
    tokenizer = byte_tokenizer(AddedToken("<end>", special=True))
    text = rendered(("say <e", USER), ("nd><end>", OTHER))
    encoder = Encoder(tokenizer, control_tokens="everywhere")
    spans = [LossSpan(start=0, end=6, weight=0.0), LossSpan(start=6, end=14, weight=1.0)]
    tokens = [tokenizer.decode([id]) for id in encoder.encode(text, spans).input_ids]
    assert tokens == [*"say <end>", "<end>"]
    assert [tokenizer.decode([id]) for id in encoder.encode(text).input_ids] == [*"say ", "<end>", "<end>"]
