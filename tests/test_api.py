"""The API for Python programs and notebooks: `render`, `prepare`, the views of values, the public names."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import templatekit
from templatekit import (
    IGNORE_INDEX,
    Adapter,
    ConfigError,
    Example,
    Message,
    RecordError,
    RenderedText,
    SourceError,
    Template,
    TemplateFile,
    TokenizedExample,
    Tokenizer,
    UnknownNameError,
    create_registry,
    load_template,
    prepare,
    render,
)
from templatekit.cli.preview import view_of
from templatekit.views import to_html, to_marked, to_rich

ROWS = [{"instruction": f"add {row}", "input": "", "output": "x" * row} for row in range(1, 6)]
QA = "{#- templatekit\nstop: ['!']\n#}\nQ: {{ instruction }}{{ context }}\nA:{{ response }}!"


def texts(items: Iterator[Any]) -> list[str]:
    return [item.text if isinstance(item, RenderedText) else item.rendered.text for item in items]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_of: Any) -> Tokenizer:
    made: Tokenizer = tokenizer_of("bytes")
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


# Where records come from


def test_records_come_from_anywhere(file: Path, tmp_path: Path) -> None:
    expected = texts(render(ROWS))
    assert len(expected) == 5
    saved = datasets.Dataset.from_list(ROWS)
    for records in (
        tuple(ROWS),
        iter(ROWS),
        (row for row in ROWS),
        saved,
        saved.to_iterable_dataset(),
        str(file),
        file,
    ):
        assert texts(render(records)) == expected
    assert len(texts(render("starter", limit=3))) == 3
    assert len(texts(render(ROWS, limit=3))) == 3


def test_a_generator_is_read_lazily() -> None:
    asked = []

    def endless() -> Iterator[dict[str, str]]:
        while True:
            asked.append(1)
            yield {"instruction": "a", "output": "b"}

    items = render(endless())
    assert not asked
    first = next(items)
    assert isinstance(first, RenderedText)
    assert len(asked) < 1000


def test_rows_are_numbered_in_order() -> None:
    rows: list[Any] = [*ROWS, {"instruction": "a"}, *ROWS]
    numbers = [item.row for item in render(rows, on_error="skip")]
    assert numbers == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    with pytest.raises(RecordError, match=r"^5:output: missing") as raised:
        list(render(rows))
    assert (raised.value.row, raised.value.field, raised.value.reason) == (5, "output", "missing_output")


def test_columns_are_renamed() -> None:
    rows = [{"question": "add 1", "answer": "x"}]
    assert texts(render(rows, columns={"instruction": "question", "output": "answer"})) == texts(render(ROWS, limit=1))


# Names or objects


def test_adapters_and_templates_may_be_objects(tmp_path: Path) -> None:
    class Mine(Adapter):
        name = "mine"
        keys = ("q",)

        def to_example(self, record: Any) -> Example:
            return Example(
                messages=(Message(role="user", content=record["q"]), Message(role="assistant", content="!?"))
            )

    path = tmp_path / "qa.jinja"
    path.write_text(QA)
    for template in str(path), path, load_template(str(path)), Template(TemplateFile(name="qa", source=QA)):
        assert texts(render([{"q": "why"}], adapter=Mine(), template=template)) == ["Q: why\nA:!?!"]
    registry = create_registry()
    assert texts(render(ROWS, adapter=registry.adapters["alpaca"])) == texts(render(ROWS, adapter="alpaca"))


def test_tokenizers_may_be_names_paths_or_objects(tokenizer_of: Any, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    folder: Path = tokenizer_of.folder("bytes")
    expected = list(render(ROWS, tokenizer=tokenizer))
    assert all(isinstance(item, TokenizedExample) for item in expected)
    for made in folder, str(folder), folder / "tokenizer.json", AutoTokenizer.from_pretrained(folder):
        items = list(render(ROWS, tokenizer=made))
        assert [item.input_ids for item in items] == [item.input_ids for item in expected]
        assert [item.labels for item in items] == [item.labels for item in expected]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"adapter": "alpacca"}, UnknownNameError, "no adapter named 'alpacca'; did you mean 'alpaca'"),
        ({"template": "alpacca"}, UnknownNameError, "no template named 'alpacca'; did you mean 'alpaca'"),
        ({"train_on": "x"}, ConfigError, "train_on: found 'x'; no part is named 'x'"),
        ({"maxlength": 5}, ConfigError, "unknown option 'maxlength'; did you mean 'max_length'"),
        ({"adapter": Adapter}, ConfigError, "adapter: found <class .*; expected a name or an Adapter object"),
        ({"template": None}, ConfigError, "template: found None; expected a name, a .jinja file or a Template"),
        ({"template": TemplateFile(name="x", source="")}, ConfigError, "template: found TemplateFile"),
        ({"records": {"instruction": "a"}}, ConfigError, "records: found dict; expected an address, or a list"),
        ({"records": 5}, ConfigError, "records: found int; expected an address, or a list"),
        ({"records": "no such address"}, SourceError, "no such address"),
        (
            {"records": datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})},
            ConfigError,
            "records: found DatasetDict; .* one split",
        ),
    ],
)
def test_wrong_arguments_raise_immediately(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        render(**{"records": ROWS, **changes})


# A data set for any trainer


def test_prepare_gives_ids_and_labels(tokenizer: Tokenizer) -> None:
    rows = [{"instruction": f"add {row}", "output": "x" * (row % 7)} for row in range(700)]
    items = [item for item in render(rows, tokenizer=tokenizer) if isinstance(item, TokenizedExample)]
    dataset = prepare(rows, tokenizer=tokenizer)
    assert isinstance(dataset, datasets.Dataset)
    assert dataset.column_names == ["input_ids", "labels"]
    assert dataset["input_ids"][:] == [list(item.input_ids) for item in items]
    assert dataset["labels"][:] == [list(item.labels) for item in items]
    assert dataset.features["input_ids"].feature.dtype == "int32"


def test_prepare_has_a_column_of_weights_if_any_is_fractional(tokenizer: Tokenizer) -> None:
    def row(weight: float) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": weight}]}

    assert "loss_weights" not in prepare([row(1), row(0)], tokenizer=tokenizer, template="chatml").column_names
    dataset = prepare([row(1), row(0.5)], tokenizer=tokenizer, template="chatml")
    assert set(dataset["loss_weights"][0]) == {0.0, 1.0}
    assert set(dataset["loss_weights"][1]) == {0.0, 0.5}


def test_prepare_of_nothing_has_its_columns(tokenizer: Tokenizer) -> None:
    dataset = prepare([], tokenizer=tokenizer)
    assert (dataset.num_rows, dataset.column_names) == (0, ["input_ids", "labels"])


def test_prepare_drops_long_examples(tokenizer: Tokenizer) -> None:
    lengths = [len(ids) for ids in prepare(ROWS, tokenizer=tokenizer)["input_ids"]]
    short = prepare(ROWS, tokenizer=tokenizer, max_length=sorted(lengths)[2])
    assert short.num_rows == sum(length <= sorted(lengths)[2] for length in lengths)
    with pytest.raises(ConfigError, match="0 of 5 samples left; dropped: 5 too_long"):
        prepare(ROWS, tokenizer=tokenizer, max_length=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trl_trains_on_the_result_of_prepare(tokenizer_of: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    served = AutoTokenizer.from_pretrained(tokenizer_of.folder("bytes"))
    dataset = prepare(ROWS, tokenizer=served, train_on="content")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(served), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        )
    )  # fmt: skip
    untrained = copy.deepcopy(model)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=len(ROWS), learning_rate=1e-2,
            report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no", logging_steps=1,
        ),
        train_dataset=dataset,
        processing_class=served,
    )  # fmt: skip
    reported = trainer.train().training_loss

    total, targets = 0.0, 0
    with torch.no_grad():
        for row in dataset:
            logits = untrained(torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:])
            total += torch.nn.functional.cross_entropy(
                logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"
            ).item()
            targets += int((labels != IGNORE_INDEX).sum())
    assert targets == sum(len(ids) for ids in served([row["output"] for row in ROWS])["input_ids"]) + len(ROWS)
    assert reported == pytest.approx(total / targets, rel=1e-5)
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), untrained.parameters(), strict=True)]
    assert any(moved)


# Display


def shown(instruction: str, response: str, tokenizer: Tokenizer | None = None, **options: Any) -> Any:
    record = {"instruction": instruction, "output": response}
    template = Template(TemplateFile(name="qa", source=QA))
    return next(render([record], template=template, tokenizer=tokenizer, **options))


def test_a_notebook_shows_origins_weights_and_counts(tokenizer: Tokenizer) -> None:
    item = shown("<b>1 & 2</b>", '"3"', tokenizer)
    page = item._repr_html_()
    assert "<b>" not in page
    assert '<span style="color:#777" title="template">Q: </span>' in page
    assert '<span style="color:#06c" title="messages[0].content">&lt;b&gt;1 &amp; 2&lt;/b&gt;</span>' in page
    assert 'title="messages[1].content, weight 1">&quot;3&quot;</span>' in page
    assert page.endswith(f"{len(item)} tokens, {item.trained_tokens} trained</div>")
    assert page == to_html(item.view())
    assert "tokens" not in item.rendered._repr_html_()


# Characters that hide or reorder others are escaped, which the tests of `visible` look at.
_SHOWN = st.text(st.characters(exclude_categories=["Cf", "Co", "Cs", "Zl", "Zp"]))


@given(instruction=_SHOWN, response=_SHOWN)
def test_every_view_shows_the_whole_text(instruction: str, response: str) -> None:
    item = shown(instruction, response)
    plain = item.text.translate({code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"})
    plain = plain.translate({127: "␡", **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}})
    assert to_rich(item.view()).plain == plain
    marked = to_marked(item.view())
    assert marked.replace("⟦", "").replace("⟧", "") == plain.replace("⟦", "").replace("⟧", "")
    page = to_html(item.view())
    assert unescape(re.sub(r"<[^>]*>", "", page)) == plain
    assert set(re.findall(r"<(/?\w+)", page)) <= {"pre", "/pre", "span", "/span"}


def test_a_terminal_shows_colours(tokenizer: Tokenizer) -> None:
    console = Console(force_terminal=True, color_system="standard", width=80, no_color=False)
    with console.capture() as captured:
        console.print(shown("[red]1[/red]", "3", tokenizer))
    assert captured.get() == (
        "\x1b[2mQ: \x1b[0m\x1b[36m[red]1[/red]\x1b[0m\n\x1b[2mA:\x1b[0m\x1b[1;32m3\x1b[0m\x1b[1;32m!\x1b[0m\n"
    )


@pytest.mark.parametrize(
    ("train_on", "marked"),
    [
        ("response", "Q: 1\nA:⟦3!⟧"),
        ("all", "⟦Q: 1\nA:3!⟧"),
        ("content", "Q: 1\nA:⟦3!⟧"),
        ("response=2,user=0.25", "Q: ⟦0.25|1⟧\nA:⟦2|3!⟧"),
        ("assistant=0.5", "Q: 1\nA:⟦0.5|3⟧⟦!⟧"),
        ("response=0,*.content", "Q: ⟦1⟧\nA:⟦3⟧!"),
    ],
)
def test_marks_are_the_same_with_and_without_a_tokenizer(train_on: Any, marked: str, tokenizer: Tokenizer) -> None:
    assert to_marked(view_of(shown("1", "3"), train_on)) == marked
    assert to_marked(shown("1", "3", tokenizer, train_on=train_on).view()) == marked


def test_weights_are_shown(tokenizer: Tokenizer) -> None:
    """As numbers in a notebook; in a terminal, a weight below 1 is green without bold."""
    item = shown("why", "so", tokenizer, train_on="response,user=0.25")
    assert 'title="messages[0].content, weight 0.25">why</span>' in to_html(item.view())
    assert 'title="template, weight 1">!</span>' in to_html(item.view())
    styles = {str(span.style): item.rendered.text[span.start : span.end] for span in to_rich(item.view()).spans}
    assert styles["green"] == "why"
    assert styles["bold green"] in ("so", "!")


def test_train_on_is_checked_for_display() -> None:
    with pytest.raises(ConfigError, match="no part is named 'respons'"):
        view_of(shown("1", "3"), "respons")


def test_untrained_turns_are_not_marked() -> None:
    turns = [("user", "a", 1), ("assistant", "b", 0), ("user", "c", 1), ("assistant", "d", 1)]
    record = {"messages": [{"role": role, "content": text, "weight": weight} for role, text, weight in turns]}
    (item,) = render([record], template="chatml")
    assert isinstance(item, RenderedText)
    assert re.findall("⟦(.*?)⟧", to_marked(item.view()), re.DOTALL) == ["d<|im_end|>"]


def test_a_prompt_is_shown_untrained() -> None:
    prompt = load_template_of(QA).prompt(Example(messages=(Message(role="user", content="why"),)))
    assert to_marked(prompt.view()) == "Q: why\nA:"


def load_template_of(source: str) -> Template:
    return Template(TemplateFile(name="qa", source=source))


# The public names


def test_every_public_name_exists_and_is_documented() -> None:
    assert sorted(templatekit.__all__) == dir(templatekit)
    assert len(set(templatekit.__all__)) == len(templatekit.__all__)
    for name in templatekit.__all__:
        value = getattr(templatekit, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
            assert value.__module__.startswith("templatekit"), name
    with pytest.raises(AttributeError, match="no attribute 'rendr'"):
        _ = templatekit.rendr


def test_public_functions_and_methods_are_typed() -> None:
    assert (Path(templatekit.__file__).parent / "py.typed").is_file()
    checked = 0
    for name in templatekit.__all__:
        value = getattr(templatekit, name)
        members: dict[str, Callable[..., Any]] = {}
        if inspect.isfunction(value):
            members[name] = value
        elif inspect.isclass(value):
            members = {key: member for key, member in vars(value).items() if inspect.isfunction(member)}
        for key, member in members.items():
            if member.__module__ is None or not member.__module__.startswith("templatekit"):
                continue
            if re.fullmatch(r"__\w+__", key) and key != "__init__":
                continue
            signature = inspect.signature(member)
            checked += 1
            for parameter in list(signature.parameters.values()):
                typed = parameter.annotation is not parameter.empty or parameter.name in ("self", "cls")
                assert typed, f"{name}.{key}({parameter.name})"
            assert signature.return_annotation is not signature.empty or key == "__init__", f"{name}.{key}"
    assert checked > 20
