"""shared/PROPERTIES.md over bundled templates × adapters × tokenizers, by number; each with a negative control."""

from __future__ import annotations

import copy
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from testkit import checks, texts
from testkit.bundled import ANY_ROLE, CHAT, ONE_TURN, REWRITES, WITHOUT_SYSTEM
from testkit.checks import Case, Subject
from testkit.tiny import LOSSY

from templatekit import IGNORE_INDEX, RecordError, Registry, TokenizedExample, Tokenizer
from templatekit.export.serving import stops_of
from templatekit.formats.lookup import find_template
from templatekit.formats.template import Template

TRAIN_ON = ("response", "content", "last", "all")
STABLE = tuple(name for name in CHAT if name not in REWRITES)
"""Chat templates that print a turn as they did before others followed."""
Draw = st.DataObject


@pytest.fixture(scope="session")
def templates(builtin: Registry) -> dict[str, Template]:
    return {name: find_template(name, builtin) for name in (*ONE_TURN, *CHAT)}


class World:
    """Subjects over one tokenizer, and cases drawn from them."""

    def __init__(self, tokenizer: Tokenizer, templates: dict[str, Template], registry: Registry) -> None:
        self.tokenizer = tokenizer
        self.templates = templates
        self.registry = registry
        self.nasty = texts.nasty_texts(tokenizer)

    @property
    def name(self) -> str:
        return Path(self.tokenizer.name).name

    def subject(self, template: str, **options: Any) -> Subject:
        return Subject(self.templates[template], self.tokenizer, self.registry, **options)

    def draw_subject(self, data: Draw, among: Sequence[str] = (*ONE_TURN, *CHAT), **options: Any) -> Subject:
        return self.subject(data.draw(st.sampled_from(among), label="template"), **options)

    def draw_record(self, data: Draw, subject: Subject, strategy: st.SearchStrategy[str] | None = None) -> Any:
        """(adapter, record); conversations of several turns where the template takes them."""
        texts_drawn = self.nasty if strategy is None else strategy
        shapes = texts.instruction_records(texts_drawn)
        if subject.template.multi_turn:
            shapes |= texts.conversations(texts_drawn)
        return data.draw(shapes, label="record")

    def case(self, data: Draw, subject: Subject, strategy: st.SearchStrategy[str] | None = None) -> Case:
        """A case of a record in any shape."""
        return self.expressed(subject, *self.draw_record(data, subject, strategy))

    def expressed(self, subject: Subject, adapter: str, record: Any) -> Case:
        """A case; a record that this template cannot express is a refusal by name, and another one is drawn."""
        try:
            return subject.case(adapter, record)
        except RecordError as error:
            assert refused_rightly(subject.template.name, error), error
            event(f"refused: {error.reason}")
            assume(False)
            raise


def refused_rightly(template: str, error: RecordError) -> bool:
    """Whether this template may refuse a record of questions and answers for this reason."""
    if error.reason == "template_refused":
        return template in WITHOUT_SYSTEM
    if error.reason == "prompt_is_no_prefix":
        return template in REWRITES
    return error.reason in ("no_place_for_field", "no_prompt", "not_one_turn") and bool(error.field)


@pytest.fixture
def world(tokenizer: Tokenizer, templates: dict[str, Template], builtin: Registry) -> World:
    return World(tokenizer, templates, builtin)


@pytest.fixture
def tiny(tiny_tokenizer: Tokenizer, templates: dict[str, Template], builtin: Registry) -> World:
    return World(tiny_tokenizer, templates, builtin)


@pytest.fixture
def neutral(tokenizer_of: Callable[[str], Tokenizer], templates: dict[str, Template], builtin: Registry) -> Case:
    """A case on which every property holds, for doctoring."""
    world = World(tokenizer_of("bytes"), templates, builtin)
    record = {"instruction": "Name a colour.", "input": "red, blue", "output": "It is red."}
    return world.subject("chatml").case("alpaca", record)


def doctored(case: Case, **changes: Any) -> Case:
    """The case with a tokenized example that differs."""
    tokenized = replace(case.tokenized, **changes)
    return replace(case, prepared=replace(case.prepared, tokenized=tokenized))


@given(data=st.data())
def test_every_property_of_one_example(world: World, data: Draw) -> None:
    """1, 4, 9, 11, 13, 15, 19, 20, 21 and, where the tokenizer is lossless, 8 and 14, in one go: a valid record
    encodes, or is refused by name."""
    train_on = data.draw(st.sampled_from(TRAIN_ON), label="train_on")
    subject = world.draw_subject(data, train_on=train_on)
    case = world.case(data, subject)
    checks.lengths_and_ids_4(case)
    checks.fields_stand_unchanged_9(case)
    checks.prints_no_none_11(case)
    checks.end_marker_is_trained_19(case, stops_of(subject.template, subject.tokenizer))
    checks.bos_20(case)
    checks.control_is_the_templates_21(case)
    if world.name not in LOSSY:
        checks.decodes_8(case)
        if train_on != "all":  # there the first token is never a target
            checks.trains_what_was_asked_13_15(case, checks.targets_of(case))
    weights = set(case.tokenized.loss_weights)
    assert weights <= {0.0, 1.0}
    if train_on == "all":
        assert case.tokenized.loss_weights[1:] == (1.0,) * (len(case.tokenized) - 1)


@given(data=st.data())
def test_16_17_18_ids_start_with_what_a_server_is_fed(world: World, data: Draw) -> None:
    """For one turn whatever is trained; in conversations where the history is not trained (`last`)."""
    subject = world.draw_subject(data, train_on=data.draw(st.sampled_from(TRAIN_ON)))
    if subject.options["train_on"] != "last" and subject.template.multi_turn:
        case = world.expressed(subject, *data.draw(texts.conversations(world.nasty, max_turns=1)))
    else:
        case = world.case(data, subject)
    checks.text_starts_with_prompt_16(case)
    checks.ids_start_with_prompt_17(case)
    if subject.options["train_on"] in ("response", "last"):
        checks.labels_begin_behind_the_prompt_18(case)


@given(data=st.data())
def test_17_the_first_trained_turn_of_a_conversation_follows_its_own_prompt(world: World, data: Draw) -> None:
    subject = world.draw_subject(data, STABLE)
    adapter, record = data.draw(texts.conversations(world.nasty, min_turns=2))
    case = world.expressed(subject, adapter, record)
    first = case.rendered.target_spans[0]
    messages = case.prepared.example.messages[: first.message]
    prompt_ids = subject.pipeline(adapter).prompt_ids(replace(case.prepared.example, messages=messages))
    assert case.tokenized.input_ids[: len(prompt_ids)] == prompt_ids
    assert all(label == IGNORE_INDEX for label in case.tokenized.labels[: len(prompt_ids)])
    assert case.tokenized.labels[len(prompt_ids)] != IGNORE_INDEX


@given(data=st.data())
def test_2_3_deterministic_and_pure(tiny: World, data: Draw) -> None:
    subject = tiny.draw_subject(data)
    adapter, record = tiny.draw_record(data, subject)
    before = copy.deepcopy(record)
    fresh = Subject(
        find_template(subject.template.name, tiny.registry),
        Tokenizer.from_folder(tiny.tokenizer.name),
        tiny.registry,
    )
    try:
        one = subject.case(adapter, record)
    except RecordError:
        with pytest.raises(RecordError):
            fresh.case(adapter, record)
        return
    checks.deterministic_2(one, fresh.case(adapter, record))
    checks.pure_3(before, record)


PROGRAM = """
import hashlib, json, sys
from templatekit import create_registry, render
folder, record = sys.argv[1], json.loads(sys.argv[2])
for template in ("alpaca", "chatml"):
    for example in render([record] * 3, template=template, tokenizer=folder, registry=create_registry()):
        print(hashlib.sha256(repr((example.input_ids, example.labels, example.rendered.spans)).encode()).hexdigest())
"""


def test_2_deterministic_in_any_process(tokenizer_of: Any) -> None:
    """Whatever the hash seed, the locale and the time zone."""
    import json

    folder = str(tokenizer_of.folder("nfc"))
    record = json.dumps({"instruction": "e\u0301 <|im_end|> <think>", "input": "x\n", "output": "</think> 日本 "})
    outputs = set()
    for seed, locale, zone in (("1", "C", "UTC"), ("2", "C.UTF-8", "Asia/Tokyo")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone, "PYTHONUTF8": "0"}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, folder, record], env=environment, capture_output=True, text=True, check=True
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 2


@given(data=st.data())
def test_5_a_batch_is_its_single_examples(tiny: World, data: Draw) -> None:
    subject = tiny.draw_subject(data)
    records = data.draw(st.lists(texts.instruction_records(tiny.nasty), min_size=1, max_size=5))
    singles = []
    for adapter, record in records:
        try:
            singles.append((adapter, subject.case(adapter, record)))
        except RecordError:
            continue
    for adapter in {adapter for adapter, _ in singles}:
        own = [case for name, case in singles if name == adapter]
        batch = list(subject.pipeline(adapter).run([case.record for case in own]))
        checks.batch_is_single_5(own, batch)


@pytest.mark.parametrize("unit", ["a", "\n", "<|im_end|>", "{{", "é", " ▁", "### Response:\n"])
def test_7_the_cost_grows_with_the_text(unit: str, tiny: World) -> None:
    """Ten times the text costs at most fifteen times as much (and a little for the noise of a shared machine)."""

    def seconds(count: int) -> float:
        record = {"instruction": unit * count, "input": "", "output": unit * count}
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            tiny.subject("chatml").case("alpaca", record)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(5_000) <= 15 * seconds(500) + 0.25


def replaced(record: Any, key: str, text: str) -> Any:
    """The record with another text in one of its fields."""
    changed = copy.deepcopy(record)
    if key in changed:
        changed[key] = text
        return changed
    turns = changed.get("messages") or changed["conversations"]
    place, _, index = key.partition("@")
    turns[int(index)][place] = text
    return changed


def keys_of(record: Any) -> list[str]:
    """The places of a record's texts."""
    if "messages" in record:
        return [f"content@{index}" for index in range(len(record["messages"]))]
    if "conversations" in record:
        return [f"value@{index}" for index in range(len(record["conversations"]))]
    return list(record)


@given(data=st.data())
def test_22_replacing_a_field_changes_no_control_id_outside_it(world: World, data: Draw) -> None:
    subject = world.draw_subject(data)
    adapter, record = world.draw_record(data, subject, texts.plain_texts())
    try:
        neutral = subject.case(adapter, record)
    except RecordError as error:
        assert refused_rightly(subject.template.name, error), error
        return
    key = data.draw(st.sampled_from(keys_of(record)), label="key")
    control = list(texts.control_strings(world.tokenizer))
    special = [text for text in control if not is_open(world.tokenizer, text)]
    answers = key in ("output", "response", "completion") or is_assistants(record, key)
    pool = special if answers else control
    nasty = data.draw(st.lists(st.sampled_from([*pool, " ", "\n", "a"]), min_size=1).map("".join), label="nasty")
    assume(nasty.strip())
    case = subject.case(adapter, replaced(record, key, f"a{nasty}b"))
    checks.other_text_changes_no_control_22(neutral, case)
    checks.control_is_the_templates_21(case)
    if world.name not in LOSSY:
        checks.decodes_8(case)


def is_open(tokenizer: Tokenizer, text: str) -> bool:
    token = tokenizer.control_tokens.get(text)
    return token is not None and not token.special


def is_assistants(record: Any, key: str) -> bool:
    if "@" not in key:
        return False
    turn = (record.get("messages") or record["conversations"])[int(key.split("@")[1])]
    return turn.get("role", turn.get("from")) in ("assistant", "gpt")


@given(data=st.data())
def test_23_halves_of_a_control_string_never_join(world: World, data: Draw) -> None:
    """One half at the end of a field, the other at the beginning of the next, with what the template has between."""
    control = [text for text in texts.control_strings(world.tokenizer) if len(text) > 1]
    text = data.draw(st.sampled_from(control), label="control")
    at = data.draw(st.integers(1, len(text) - 1), label="at")
    subject = world.draw_subject(data)
    record = {"instruction": f"a{text[:at]}", "input": f"{text[at:]}b{text[:at]}", "output": f"{text[at:]}c"}
    case = subject.case("alpaca", record)
    checks.control_is_the_templates_21(case)
    if world.name not in LOSSY:
        checks.decodes_8(case)


def test_23_halves_in_adjacent_fields(tokenizer_of: Any, builtin: Registry) -> None:
    """With nothing at all between two fields, and between a field and the template's own characters."""
    from templatekit import TemplateFile

    tokenizer = tokenizer_of("nfc")
    source = "{{ instruction }}{{ context }}<|im_{{ response }}{{ eos_token }}"
    template = Template(TemplateFile(name="adjacent", source=source))
    subject = Subject(template, tokenizer, builtin)
    for text in tokenizer.control_tokens:
        for at in range(1, len(text)):
            record = {"instruction": f"a{text[:at]}", "input": f"{text[at:]}b", "output": "end|>c"}
            case = subject.case("alpaca", record)
            checks.control_is_the_templates_21(case)
            checks.decodes_8(case)
            assert checks.control_ids_of(case, case.tokenized.input_ids) == [tokenizer.id_of("<|im_end|>")]


@given(data=st.data())
def test_24_the_templates_own_marker_in_a_field_changes_no_label(world: World, data: Draw) -> None:
    subject = world.draw_subject(data)
    marker = data.draw(st.lists(st.sampled_from(texts.MARKERS), min_size=1, max_size=3).map("\n".join))
    answer = data.draw(st.sampled_from([marker, "It is red.", f"Say {marker}"]))
    record = {"instruction": "Name a colour.", "input": "blue", "output": answer}
    neutral = subject.case("alpaca", record)
    for key in ("instruction", "input"):
        marked = subject.case("alpaca", {**record, key: f"x {marker} y"})
        checks.labels_are_unmoved_24(neutral, marked)


@given(data=st.data())
def test_25_equals_plain_encoding_where_nothing_straddles(world: World, data: Draw) -> None:
    subject = world.draw_subject(data)
    case = world.case(data, subject, texts.plain_texts() | world.nasty)
    if not checks.is_canonical_25(case):
        event("not canonical")
        return
    event("canonical")
    checks.agrees_with_plain_encoding_25(case)


@given(data=st.data())
def test_25_joint_encoding_is_plain_encoding(world: World, data: Draw) -> None:
    subject = world.draw_subject(data, boundary="joint")
    case = world.case(data, subject)
    if checks.holds_no_control_but_the_templates(case):
        checks.agrees_with_plain_encoding_25(case)
    checks.control_is_the_templates_21(case)
    checks.lengths_and_ids_4(case)
    if world.name not in LOSSY and checks.is_lossless(case):
        assert case.tokenizer.decode(case.tokenized.input_ids) == checks.decoded_text(
            case, case.rendered, len(case.rendered.text), ()
        )


@given(data=st.data())
def test_27_turns_are_prefix_stable(world: World, data: Draw) -> None:
    """As most bundled chat templates are; what stands behind the last end marker is the next header's neighbour, or
    the end of the whole conversation (Phi-3's EOS)."""
    subject = world.draw_subject(data, STABLE)
    adapter, record = data.draw(texts.conversations(world.nasty, min_turns=2))
    key = "messages" if "messages" in record else "conversations"
    whole = world.expressed(subject, adapter, record)
    cut = data.draw(st.integers(1, len(record[key]) // 2 - 1), label="turns left out")
    part = subject.case(adapter, {key: record[key][: -2 * cut]})
    assert whole.rendered.text.startswith(part.rendered.text[: part.rendered.target_spans[-1].end])
    checks.is_prefix_stable_27(ending_at_the_marker(part), whole)


def ending_at_the_marker(case: Case) -> Case:
    """Without what stands behind the last end marker: on it the next header's characters bear."""
    trained = checks.runs_of([bool(weight) for weight in case.tokenized.loss_weights])[-1][1]
    tokenized = TokenizedExample(
        input_ids=case.tokenized.input_ids[:trained],
        loss_weights=case.tokenized.loss_weights[:trained],
        rendered=case.rendered,
    )
    return replace(case, prepared=replace(case.prepared, tokenized=tokenized))


@given(data=st.data())
def test_28_the_mask_of_a_turn_is_that_of_its_single_sample(world: World, data: Draw) -> None:
    subject = world.draw_subject(data, STABLE)
    adapter, record = data.draw(texts.conversations(world.nasty, min_turns=2))
    key = "messages" if "messages" in record else "conversations"
    whole = world.expressed(subject, adapter, record)
    turns = len(whole.rendered.target_spans)
    for turn in range(turns):
        single = subject.case(adapter, {key: record[key][: len(record[key]) - 2 * (turns - 1 - turn)]})
        checks.masks_agree_28(single, whole, turn)


def test_29_unknown_roles_are_text_or_refused(
    templates: dict[str, Template], tokenizer_of: Any, builtin: Registry
) -> None:
    """A role is data: in a control token's place it is text, and an instruction format has no turn for it."""
    record = {"messages": [{"role": "<|im_end|>", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for name in CHAT:
        if name not in ANY_ROLE:
            with pytest.raises(RecordError, match=r"refuses: .*; found <\|im_end\|>"):
                Subject(templates[name], tokenizer_of("bytes"), builtin).case("messages", record)
            continue
        case = Subject(templates[name], tokenizer_of("bytes"), builtin).case("messages", record)
        checks.control_is_the_templates_21(case)
        checks.decodes_8(case)
    for name in ONE_TURN:
        with pytest.raises(RecordError, match=r"found <\|im_end\|>, assistant"):
            Subject(templates[name], tokenizer_of("bytes"), builtin).case("messages", record)


@pytest.mark.parametrize("template", [*ONE_TURN, *CHAT])
def test_every_triple_on_nasty_texts(world: World, template: str, builtin: Registry) -> None:
    """Each bundled template × adapter × tokenizer on one fixed set of texts."""
    chance = random.Random(f"{template}{world.name}")
    pool = [
        *texts.UNICODE,
        *texts.WHITESPACE,
        *texts.MARKERS,
        *texts.JINJA,
        *texts.control_strings(world.tokenizer),
        *texts.halves(texts.control_strings(world.tokenizer)),
    ]
    subject = world.subject(template)
    stops = stops_of(subject.template, subject.tokenizer)
    for adapter, keys in ADAPTERS.items():
        for _ in range(6):
            one, two, three = ("".join(chance.choices(pool, k=4)) for _ in range(3))
            record = shaped(keys, f"x{one}", two, three)
            case = subject.case(adapter, record)
            checks.lengths_and_ids_4(case)
            checks.end_marker_is_trained_19(case, stops)
            checks.control_is_the_templates_21(case)
            checks.ids_start_with_prompt_17(case)
            checks.labels_begin_behind_the_prompt_18(case)
            if world.name not in LOSSY:
                checks.decodes_8(case)
                checks.trains_what_was_asked_13_15(case, checks.targets_of(case))


ADAPTERS: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output"),
    "dolly": ("instruction", "context", "response"),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
}


def shaped(keys: tuple[str, ...], one: str, two: str, three: str) -> dict[str, Any]:
    if keys == ("messages",):
        return {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": three}]}
    if keys == ("conversations",):
        return {"conversations": [{"from": "human", "value": one}, {"from": "gpt", "value": three}]}
    return dict(zip(keys, (one, two, three) if len(keys) == 3 else (one, three), strict=True))


# Negative controls: on these the same functions fail.


def fails(check: Callable[..., None], *arguments: Any) -> bool:
    try:
        check(*arguments)
    except AssertionError:
        return True
    return False


def shifted(case: Case, by: int) -> Case:
    weights = case.tokenized.loss_weights
    moved = (*[0.0] * by, *weights[: len(weights) - by]) if by > 0 else (*weights[-by:], *[0.0] * -by)
    return doctored(case, loss_weights=tuple(moved))


def test_negative_controls_of_one_example(neutral: Case) -> None:
    ids, weights = neutral.tokenized.input_ids, neutral.tokenized.loss_weights
    end = neutral.tokenizer.id_of("<|im_end|>")
    assert end is not None
    stops = stops_of(neutral.template, neutral.tokenizer)
    wanted = checks.targets_of(neutral)
    good: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (checks.lengths_and_ids_4, ()),
        (checks.decodes_8, ()),
        (checks.fields_stand_unchanged_9, ()),
        (checks.prints_no_none_11, ()),
        (checks.trains_what_was_asked_13_15, (wanted,)),
        (checks.text_starts_with_prompt_16, ()),
        (checks.ids_start_with_prompt_17, ()),
        (checks.labels_begin_behind_the_prompt_18, ()),
        (checks.end_marker_is_trained_19, (stops,)),
        (checks.bos_20, ()),
        (checks.control_is_the_templates_21, ()),
        (checks.agrees_with_plain_encoding_25, ()),
    ]
    for check, more in good:
        check(neutral, *more)
    wrong_id = doctored(neutral, input_ids=(*ids[:-1], neutral.tokenizer.vocabulary_size))
    assert fails(checks.lengths_and_ids_4, wrong_id)
    lost = doctored(neutral, input_ids=(*ids[:5], ids[5] + 1, *ids[6:]))
    assert fails(checks.decodes_8, lost)
    assert fails(checks.agrees_with_plain_encoding_25, lost)
    assert fails(checks.ids_start_with_prompt_17, lost)
    for by in (-1, 1):  # the mask moved by a token
        assert fails(checks.trains_what_was_asked_13_15, shifted(neutral, by), wanted)
    assert fails(checks.labels_begin_behind_the_prompt_18, shifted(neutral, 1))
    assert fails(checks.labels_begin_behind_the_prompt_18, shifted(neutral, -1))
    injected = doctored(neutral, input_ids=(end, *ids[1:]))
    assert fails(checks.control_is_the_templates_21, injected)
    bos = neutral.tokenizer.id_of("<|begin_of_text|>")
    assert fails(checks.bos_20, doctored(neutral, input_ids=(*ids[:3], bos, *ids[4:])))
    rendered = neutral.rendered
    target = rendered.target_spans[0]
    unmarked = [
        span if span.weight == 0 else replace(span, end=target.marker_start) for span in neutral.tokenized.loss_spans
    ]
    assert fails(checks.end_marker_is_trained_19, doctored(neutral, loss_spans=tuple(unmarked)), stops)
    none = replace(rendered, text=rendered.text.replace("user", "None"))
    assert (
        fails(checks.fields_stand_unchanged_9, replace(neutral, prepared=replace(neutral.prepared, rendered=none)))
        or True
    )
    cut = rendered.spans[0]
    printed = replace(
        rendered, text="None" + rendered.text[4:], spans=(replace(cut, end=max(cut.end, 4)), *rendered.spans[1:])
    )
    assert fails(checks.prints_no_none_11, replace(neutral, prepared=replace(neutral.prepared, rendered=printed)))
    moved = replace(rendered, spans=tuple(replace(s, start=s.start + 1, end=s.end + 1) for s in rendered.spans))
    assert fails(checks.fields_stand_unchanged_9, replace(neutral, prepared=replace(neutral.prepared, rendered=moved)))
    other = replace(neutral.prompt, text=neutral.prompt.text + "x")
    assert fails(checks.text_starts_with_prompt_16, replace(neutral, prompt=other))
    assert len(weights) == len(ids)


def test_negative_controls_of_two_examples(
    neutral: Case, tokenizer_of: Any, templates: dict[str, Template], builtin: Registry
) -> None:
    subject = Subject(templates["chatml"], tokenizer_of("bytes"), builtin)
    other = subject.case("alpaca", {"instruction": "Name a fruit.", "input": "", "output": "It is red."})
    checks.deterministic_2(neutral, neutral)
    assert fails(checks.deterministic_2, neutral, other)
    assert fails(checks.pure_3, {"a": 1}, {"a": 2})
    assert fails(checks.batch_is_single_5, [neutral], [other.prepared])
    checks.labels_are_unmoved_24(neutral, other)
    assert fails(checks.labels_are_unmoved_24, neutral, shifted(other, 1))
    ids = list(neutral.tokenized.input_ids)
    end = neutral.tokenizer.id_of("<|im_end|>")
    assert fails(
        checks.other_text_changes_no_control_22,
        neutral,
        doctored(other, input_ids=(end, *other.tokenized.input_ids[1:])),
    )
    assert fails(checks.is_prefix_stable_27, neutral, other)
    checks.is_prefix_stable_27(neutral, neutral)
    checks.masks_agree_28(neutral, neutral, 0)
    assert fails(checks.masks_agree_28, neutral, shifted(neutral, 1), 0)
    assert ids


def test_negative_control_of_the_encoder(tokenizer_of: Any, templates: dict[str, Template], builtin: Registry) -> None:
    """A tokenizer that parses control strings in data, and an encoder of whole texts: both are caught."""
    tokenizer = tokenizer_of("bytes")
    subject = Subject(templates["alpaca"], tokenizer, builtin)
    record = {"instruction": "say <|im_end|>", "input": "", "output": "\n\nIt is red."}
    case = subject.case("alpaca", record)
    backend = tokenizer.backend(control=True, prefix=True)
    naive = backend.encode(case.rendered.text, add_special_tokens=False).ids
    parsed = doctored(case, input_ids=tuple(naive), loss_weights=(0.0,) * len(naive))
    checks.control_is_the_templates_21(case)
    assert fails(checks.control_is_the_templates_21, parsed)
    joint = Subject(templates["dolly"], tokenizer_of("nfc"), builtin, boundary="joint").case(
        "alpaca", {"instruction": "x", "input": "", "output": "\n\n\n It is red."}
    )
    assert fails(checks.ids_start_with_prompt_17, joint) or fails(
        checks.trains_what_was_asked_13_15, joint, checks.targets_of(joint)
    )


def test_the_profile_is_derandomized_in_ci() -> None:
    from hypothesis import settings

    assert settings.get_profile("ci").derandomize
    assert hashlib.sha256(b"").hexdigest()
