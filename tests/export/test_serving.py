"""The exported chat template, rendered and encoded by transformers, gives the ids that training saw as the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from testkit.at_hand import ALL_TOKENIZERS
from testkit.bundled import BUNDLED, CHAT, ONE_TURN, WITHOUT_SYSTEM
from testkit.theirs import as_transformers, hugging_face, rendered

from templatekit import DataOptions, Example, Message, RecordError, Registry, Template, TemplateFile, Tokenizer
from templatekit.export.serving import chat_template, stops_of
from templatekit.formats.lookup import find_template
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.load import from_transformers
from templatekit.types import SpecialTokens

SERVED: dict[str, Any] = {}


@pytest.fixture
def served(tokenizer: Tokenizer) -> Any:
    """transformers' own tokenizer of the same folder, loaded as a server loads it."""
    from transformers import AutoTokenizer

    if tokenizer.name not in SERVED:
        SERVED[tokenizer.name] = AutoTokenizer.from_pretrained(tokenizer.name)
    return SERVED[tokenizer.name]


def served_ids(served: Any, template: str, example: Example) -> tuple[int, ...]:
    messages = [hugging_face(message) for message in example.messages]
    encoded = served.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return tuple(encoded)


def our_ids(template: Template, tokenizer: Tokenizer, registry: Registry, example: Example) -> tuple[int, ...]:
    options = DataOptions.parse({"dataset": "none", "adapter": "alpaca"})
    return Pipeline(options, registry, template=template, tokenizer=tokenizer).prompt_ids(example)


def user(text: str, context: str = "") -> Message:
    return Message(role="user", content=text, context=context)


SYSTEM = Message(role="system", content="Be brief.")
PLAIN: Mapping[str, tuple[Message, ...]] = {
    "plain": (user("Name three colours, please."),),
    "context": (user("Translate this.", "Good morning.\n\nHow are you?"),),
    "whitespace": (user("\n Name  it:\n\n", " x \n"),),
    "unicode": (user("naïve café 日本語 👩\u200d👩\u200d👧 e\u0301", "\u0301x"),),
    "empty": (user(""),),
    "markers": (user("### Response:\n### End\n### Instruction:", "### Input:"),),
    "jinja": (user("{{ 7*7 }} {% raw %} {{ eos_token }}", "{#"),),
}
CHATS: Mapping[str, tuple[Message, ...]] = {
    "system": (SYSTEM, user("Name three colours.")),
    "turns": (SYSTEM, user("A?"), Message(role="assistant", content="B."), user(" C?\n")),
    "no system, turns": (user("A?"), Message(role="assistant", content="\nB.\n"), user("C?")),
}


LOADED_OTHERWISE = {
    ("mistral-v1", "llama2"): "tokenizer.json puts a blank before any text, transformers 5 none before a blank",
}
"""Pairs of (template, tokenizer) where transformers loads another tokenizer than tokenizer.json describes: the
comparison uses transformers' own, as `finetune` does.
"""


@pytest.mark.parametrize("name", BUNDLED)
def test_transformers_gives_the_ids_of_training(
    name: str, tokenizer: Tokenizer, served: Any, builtin: Registry
) -> None:
    template = find_template(name, builtin)
    if (name, Path(tokenizer.name).name) in LOADED_OTHERWISE:
        tokenizer = from_transformers(served)
    exported = chat_template(template, tokenizer.special_tokens)
    cases = PLAIN if name not in CHAT else {**{k: v for k, v in PLAIN.items() if k != "context"}, **CHATS}
    for case, messages in cases.items():
        if name in CHAT:  # a chat format has no field for a context
            messages = tuple(Message(role=m.role, content=m.content) for m in messages)
        example = Example(messages=messages)
        if name in WITHOUT_SYSTEM and messages[0].role == "system":
            with pytest.raises(Exception, match="no system message; found system"):
                served_ids(served, exported, example)
            with pytest.raises(RecordError, match="no system message; found system"):
                our_ids(template, tokenizer, builtin, example)
            continue
        if has_control(tokenizer, messages):
            continue  # transformers parses control strings in data, unlike this package
        assert served_ids(served, exported, example) == our_ids(template, tokenizer, builtin, example), case


def has_control(tokenizer: Tokenizer, messages: tuple[Message, ...]) -> bool:
    return any(control in m.content + m.context for m in messages for control in tokenizer.control_tokens)


@pytest.mark.parametrize(("name", "tokenizer_name"), LOADED_OTHERWISE)
def test_what_transformers_loads_otherwise(
    name: str, tokenizer_name: str, tokenizer_of: Callable[[str], Tokenizer], builtin: Registry
) -> None:
    from transformers import AutoTokenizer

    tokenizer, template = tokenizer_of(tokenizer_name), find_template(name, builtin)
    served, example = AutoTokenizer.from_pretrained(tokenizer.name), Example(messages=PLAIN["plain"])
    assert served_ids(served, template.source, example) != our_ids(template, tokenizer, builtin, example)


@pytest.mark.parametrize("name", ONE_TURN)
def test_system_messages_are_refused_as_in_training(
    name: str, served: Any, tokenizer: Tokenizer, builtin: Registry
) -> None:
    template = find_template(name, builtin)
    exported = chat_template(template, tokenizer.special_tokens)
    example = Example(messages=(SYSTEM, user("A?")))
    with pytest.raises(Exception, match="this format has no place for a system message"):
        served_ids(served, exported, example)
    with pytest.raises(RecordError, match="has no place for this text of the system message"):
        template.render(Example(messages=(*example.messages, Message(role="assistant", content="B"))))


def test_a_format_with_a_place_for_the_system_message(tokenizer: Tokenizer, served: Any, builtin: Registry) -> None:
    source = (
        "{% if system %}\n{{ system }}\n\n{% endif %}\n\nQ: {{ instruction }}\nA: {{- response }}{{ eos_token }}\n\n"
    )
    template = Template(TemplateFile(name="asked", source=source))
    exported = chat_template(template, tokenizer.special_tokens)
    for messages in ((user("A?"),), (SYSTEM, user("A?")), (Message(role="system", content=""), user("A?"))):
        example = Example(messages=messages)
        assert served_ids(served, exported, example) == our_ids(template, tokenizer, builtin, example)
    with pytest.raises(Exception, match="this format has no place for a context"):
        served_ids(served, exported, Example(messages=(user("A?", "x"),)))


END = "{{ eos_token }}"
SOURCES = {
    "a leading newline": "\n\n{{ instruction }}\n{{ response }}" + END,
    "a leading block": "{% if context %}\n{{ context }}\n{% endif %}\n{{ instruction }}\n\n{{ response }}" + END,
    "a leading space": "  {{ instruction }} {{- response }}" + END,
    "metadata and a newline": "{#- templatekit\ndescription: x\n#}\n\n{{ instruction }}:{{ response }}" + END,
    "its own guard": "{{ instruction }}{% if not add_generation_prompt %}: {{ response }}{{ eos_token }}{% endif %}",
    "its own BOS": "{{ bos_token }}{{ instruction }}\n{{ response }}" + END,
    "a variable named turn": "{% set turn = instruction %}{{ turn }}|{{ response }}" + END,
    "a loop with names of its own": "{% for message in 'a' %}{{ message }}{% endfor %}{{ instruction }}:{{ response }}"
    + END,
    "raw": "{% raw %}{{ response }}{% endraw %}{{ instruction }}|{{ response }}" + END,
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_exported_text_is_the_same(name: str, adds_bos: bool) -> None:
    """Prompts and, where servers continue an answer, whole texts."""
    tokens = SpecialTokens(bos="<s>", eos="</s>", special=frozenset({"<s>", "</s>"}), adds_bos=adds_bos)
    template = Template(TemplateFile(name=name, source=SOURCES[name]))
    exported = chat_template(template, tokens)
    for context in ("", "some\ncontext"):
        if context and "context" not in template.variables:
            continue
        question, answer = user(" Which?\n", context), Message(role="assistant", content="\n That. ")
        for messages, prompt in (((question,), True), ((question, answer), False)):
            example = Example(messages=messages)
            ours = template.prompt(example, tokens) if prompt else template.render(example, tokens)
            assert as_transformers(exported, example, tokens, add_generation_prompt=prompt) == ours.text


@pytest.mark.parametrize(
    "roles", [("user", "assistant", "user"), ("assistant",), ("user", "user"), ("tool",), (), ("user", "system")]
)
def test_what_a_one_turn_format_does_not_take_is_refused(roles: tuple[str, ...], builtin: Registry) -> None:
    exported = chat_template(find_template("alpaca", builtin), SpecialTokens(eos="</s>"))
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(Exception, match="this format holds one turn"):
        rendered(exported, messages, SpecialTokens(eos="</s>"), add_generation_prompt=True)


def test_chat_templates_are_exported_as_they_are(tokenizer_of: Callable[[str], Tokenizer]) -> None:
    source = tokenizer_of("qwen3").chat_template
    assert source is not None
    template = Template(TemplateFile(name="own", source=source), strict=False)
    assert chat_template(template, tokenizer_of("qwen3").special_tokens) == source


STOPS = {
    ("alpaca", "gpt2"): (["<|endoftext|>"], []),
    ("dolly", "gpt2"): (["<|endoftext|>"], ["### End"]),
    ("dolly", "dolly"): (["### End", "<|endoftext|>"], []),
    ("chatml", "gpt2"): (["<|endoftext|>"], ["<|im_end|>"]),
    ("chatml", "qwen3"): (["<|im_end|>"], []),
    ("llama3", "llama3"): (["<|end_of_text|>", "<|eot_id|>"], []),
    ("alpaca", "llama2"): (["</s>"], []),
    ("llama3", "llama2"): (["</s>"], ["<|eot_id|>"]),
    ("chatml", "bytes"): (["<|endoftext|>", "<|im_end|>"], []),
    ("gemma", "gpt2"): (["<|endoftext|>"], ["<end_of_turn>"]),
    ("phi3", "strips"): (["<|im_end|>"], ["<|end|>"]),
    ("qwen3", "qwen3"): (["<|im_end|>"], []),
    ("llama2", "llama2"): (["</s>"], []),
    ("mistral", "sentencepiece"): (["</s>"], []),
    ("vicuna", "llama2"): (["</s>"], []),
    ("zephyr", "llama3"): (["<|end_of_text|>"], []),
}


@pytest.mark.parametrize(("template", "name"), STOPS)
def test_what_stops_an_answer(
    template: str, name: str, tokenizer_of: Callable[[str], Tokenizer], builtin: Registry
) -> None:
    tokenizer = tokenizer_of(name)
    stops = stops_of(find_template(template, builtin), tokenizer)
    ids, strings = STOPS[template, name]
    assert stops.ids == tuple(sorted(set(stops.ids)))
    assert {*stops.ids} == {tokenizer.id_of(text) for text in ids}
    assert stops.strings == tuple(strings)


def test_the_own_templates_stop_too(tokenizer_of: Callable[[str], Tokenizer]) -> None:
    for name, stop in (("llama3", "<|eot_id|>"), ("qwen3", "<|im_end|>"), ("smollm2", "<|im_end|>")):
        tokenizer = tokenizer_of(name)
        assert tokenizer.chat_template is not None
        template = Template(TemplateFile(name="own", source=tokenizer.chat_template), strict=False)
        assert tokenizer.id_of(stop) in stops_of(template, tokenizer).ids


def test_stops_of_a_template_that_trains_nothing_of_the_probe(tokenizer_of: Callable[[str], Tokenizer]) -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'tool' %}{% generation %}x{% endgeneration %}{% endif %}"
        "{% endfor %}{{ eos_token if not add_generation_prompt }}"
    )
    template = Template(TemplateFile(name="odd", source=source), strict=False)
    tokenizer = tokenizer_of("gpt2")
    assert stops_of(template, tokenizer).ids == (50256,)


def test_the_comparison_notices_another_template(served: Any, tokenizer: Tokenizer, builtin: Registry) -> None:
    """Negative control: the same words with one newline more give other ids."""
    alpaca, lora = find_template("alpaca", builtin), find_template("alpaca-lora", builtin)
    example = Example(messages=PLAIN["plain"])
    exported = chat_template(lora, tokenizer.special_tokens)
    assert served_ids(served, exported, example) != our_ids(alpaca, tokenizer, builtin, example)


def test_every_kind_of_tokenizer_is_tried() -> None:
    assert {"gpt2", "llama2", "llama3", "qwen3", "smollm2", "strips", "metaspace", "unigram"} <= set(ALL_TOKENIZERS)
