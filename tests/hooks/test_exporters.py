"""Each export format is read back by the library it is for; a sample that it cannot hold is refused or counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from templatekit_sharegpt import ShareGPT

import templatekit
from templatekit import Example, Message, Record, RecordError, RecordExporter, prepare
from templatekit.cli.output import write_atomically, write_output
from templatekit.config.data_options import DataOptions
from templatekit.errors import ConfigError, RunError
from templatekit.hooks.loading import create_registry
from templatekit.pipeline.outputs import admit_samples, chunks_for_exporter
from templatekit.pipeline.pipeline import Pipeline
from templatekit.types import RenderedText, Sample

REGISTRY = create_registry(select=[])
LAYOUTS = {"openai": "messages", "sharegpt": "sharegpt", "prompt-completion": "prompt-completion"}
ALPACA = [
    {"instruction": "Say hi.", "input": "", "output": "Hi!"},
    {"instruction": "Add.", "input": "1, 2", "output": "3 – ä😀"},
]
CHAT = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * 2}]


def sample(*messages: Message, **more: Any) -> Sample:
    return Sample(example=Example(messages=messages, **more), rendered=RenderedText(text="", spans=()))


def text(role: str) -> st.SearchStrategy[Message]:
    words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    weights = st.sampled_from([1.0, 1.0, 0.0, 0.5]) if role == "assistant" else st.just(1.0)
    return st.builds(
        Message,
        role=st.just(role),
        content=words,
        context=words if role == "user" else st.just(""),
        reasoning=st.just("") | words if role == "assistant" else st.just(""),
        weight=weights,
    )


@st.composite
def conversations(draw: st.DrawFn) -> Sample:
    messages = [draw(text("system"))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [draw(text("user")), draw(text("assistant"))]
    return sample(*messages)


def said(example: Example) -> list[tuple[Any, ...]]:
    return [
        (m.role, f"{m.content}\n\n{m.context}" if m.content and m.context else m.content or m.context,
         m.reasoning, m.weight if m.role == "assistant" else 1)
        for m in example.messages
    ]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@given(one=conversations())
def test_an_exported_conversation_reads_as_the_same_conversation(layout: str, one: Sample) -> None:
    exporter = REGISTRY.exporters[layout]
    try:
        record = json.loads(json.dumps(exporter.admit(one)))
    except RecordError as error:
        assert error.reason == "not_expressible"
        plain = all(not m.reasoning and m.weight == 1 for m in one.example.messages)
        assert not plain, f"a plain conversation was refused: {error}"
        return
    assert said(REGISTRY.adapters[LAYOUTS[layout]].to_example(record)) == said(one.example)


def test_negative_control_a_format_that_loses_whitespace() -> None:
    class Stripping(ShareGPT):
        def to_record(self, example: Example) -> Record:
            record = dict(super().to_record(example))
            return {**record, "conversations": [{**t, "value": t["value"].strip()} for t in record["conversations"]]}

    exporter = RecordExporter(Stripping(), name="stripping")
    exporter.admit(sample(Message(role="user", content="q"), Message(role="assistant", content="a")))
    with pytest.raises(RecordError, match=r"format 'stripping' has no place for messages\[1\]\.content=' a'"):
        exporter.admit(sample(Message(role="user", content="q"), Message(role="assistant", content=" a")))


USER = Message(role="user", content="q")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    ("layout", "one", "words"),
    [
        ("openai", sample(USER, Message(role="assistant", content="a", reasoning="hm")), r"messages\[1\]\.reasoning"),
        ("openai", sample(USER, Message(role="assistant", content="a", weight=0.5)), r"weight=0\.5; expected 0 or 1"),
        ("openai", sample(USER, Message(role="assistant", tool_calls=(CALL,))), "a tool call without an id"),
        ("openai", sample(USER), "a conversation that ends with 'user'"),
        ("openai", sample(Message(role="ipython", content="x"), USER), "role='ipython'"),
        ("openai", sample(USER, Message(role="assistant", content="a"), documents=({"t": 1},)), "documents"),
        ("sharegpt", sample(USER, Message(role="assistant", content="a", name="bob")), r"messages\[1\]\.name='bob'"),
        ("sharegpt", sample(USER, Message(role="assistant", content="a", tool_calls=(CALL,))), r"\.content='a'"),
        ("llama-factory", sample(USER, Message(role="assistant", content="a", weight=0)), "a weight of 0"),
        ("llama-factory", sample(USER, USER), "'human' as turn 1"),
        ("llama-factory", sample(USER), "a question without an answer"),
    ],
)
def test_the_reason_for_a_refusal_is_named(layout: str, one: Sample, words: str) -> None:
    with pytest.raises(RecordError, match=f"format '{layout}' has no place for .*{words}"):
        REGISTRY.exporters[layout].admit(one)


def test_openai_has_calls_as_json_and_weights_of_answers() -> None:
    call = {"id": "c1", **CALL}
    record = REGISTRY.exporters["openai"].admit(
        sample(
            USER,
            Message(role="assistant", tool_calls=(call,), weight=0),
            Message(role="tool", content="r", tool_call_id="c1"),
            Message(role="assistant", content="a"),
            tools=({"type": "function", "function": {"name": "f"}},),
        )
    )
    assert record["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert [message.get("weight") for message in record["messages"]] == [None, 0, None, None]
    assert record["tools"]


def exported(rows: list[Any], format: str, output: Path, **options: Any) -> Pipeline:
    pipeline = Pipeline(DataOptions.parse({"template": "alpaca", **options}), REGISTRY)
    exporter = REGISTRY.exporters[format]
    write_atomically(
        exporter, chunks_for_exporter(pipeline.batches(pipeline.reader.select(rows)), exporter, pipeline), output
    )
    return pipeline


def test_trl_reads_prompts_and_completions(tmp_path: Path) -> None:
    import datasets
    from trl.data_utils import is_conversational

    exported(ALPACA, "prompt-completion", tmp_path / "x.jsonl")
    dataset = datasets.Dataset.from_list(
        [json.loads(line) for line in (tmp_path / "x.jsonl").read_bytes().splitlines()]
    )
    assert dataset.column_names == ["prompt", "completion"]
    assert dataset[1] == {"prompt": "Add.\n\n1, 2", "completion": "3 – ä😀"}
    assert not is_conversational(dataset[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trl_and_transformers_train_on_the_folder(tokenizer_of: Any, tmp_path: Path) -> None:
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    folder = tokenizer_of.folder("bytes")
    exported(ALPACA, "datasets", tmp_path / "set", tokenizer=str(folder))
    dataset = datasets.load_from_disk(str(tmp_path / "set"))
    expected = prepare(ALPACA, template="alpaca", tokenizer=str(folder))
    assert dataset.select_columns(expected.column_names).to_list() == expected.to_list()
    assert dataset["attention_mask"] == [[1] * len(ids) for ids in expected["input_ids"]]
    served = AutoTokenizer.from_pretrained(folder)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(served), num_key_value_heads=2, **shape))
    losses = []
    for data in (dataset, expected):
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=str(tmp_path / "run"), max_steps=1, learning_rate=0.0, report_to=[], use_cpu=True,
                bf16=False, disable_tqdm=True, save_strategy="no",
            ),
            train_dataset=data,
            processing_class=served,
        )  # fmt: skip
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1])


def test_axolotl_has_rows_and_the_lines_of_its_config(tokenizer_of: Any, tmp_path: Path) -> None:
    exported(ALPACA, "axolotl", tmp_path / "set", tokenizer=str(tokenizer_of.folder("bytes")))
    [named] = yaml.safe_load((tmp_path / "set" / "axolotl.yaml").read_text())["datasets"]
    assert named == {"path": "train.jsonl", "ds_type": "json", "type": None}
    rows = [json.loads(line) for line in (tmp_path / "set" / named["path"]).read_bytes().splitlines()]
    assert [set(row) for row in rows] == [{"input_ids", "labels", "attention_mask"}] * 2
    assert all(len(row["labels"]) == len(row["input_ids"]) == sum(row["attention_mask"]) for row in rows)


def test_llama_factory_has_rows_and_their_description(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "system", "content": "s"}, *CHAT[0]["messages"]]}, *CHAT]
    exported(rows, "llama-factory", tmp_path / "set", template="chatml")
    info = json.loads((tmp_path / "set" / "dataset_info.json").read_text())["train"]
    assert info["formatting"] == "sharegpt"
    written = [json.loads(line) for line in (tmp_path / "set" / info["file_name"]).read_bytes().splitlines()]
    assert [row[info["columns"]["system"]] for row in written] == ["s", ""]
    assert [turn["from"] for turn in written[0][info["columns"]["messages"]]] == ["human", "gpt"] * 2


def test_a_record_of_several_samples_is_one_conversation(tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    rows = [{"messages": [{"role": "user", "content": "q"}, thought, {"role": "user", "content": "q"}, thought]}]
    pipeline = Pipeline(DataOptions.parse({"template": "qwen3"}), REGISTRY)
    samples = list(pipeline.run(rows))
    assert len(samples) == 2
    exporter = RecordExporter(REGISTRY.adapters["messages"])
    [record] = admit_samples(exporter, samples, pipeline)
    assert len(record["messages"]) == 4


def test_a_refused_sample_is_counted_or_stops_the_run(tmp_path: Path, tokenizer_of: Any) -> None:
    tokenizer = str(tokenizer_of.folder("bytes"))
    weighted = [*CHAT, {"messages": [*CHAT[0]["messages"][:1], {"role": "assistant", "content": "a", "weight": 0.5}]}]
    options = {"template": "chatml", "tokenizer": tokenizer}
    for format in ("datasets", "axolotl", "openai"):
        with pytest.raises(RecordError, match=r"starter:1: format .*0\.5.*to skip: --on-error skip"):
            exported(weighted, format, tmp_path / format, **options)
        assert not list(tmp_path.glob(f"*{format}*")), "nothing is left"
        pipeline = exported(weighted, format, tmp_path / format, **options, on_error="skip")
        assert (pipeline.counts.rows_in, pipeline.counts.rows_out) == (2, 1)
        assert pipeline.counts.dropped_rows == {"not_expressible": [1]}
    with pytest.raises(ConfigError, match="holds token ids; found no tokenizer"):
        exported(CHAT, "datasets", tmp_path / "none", template="chatml")


def test_folders_are_complete_or_absent(tmp_path: Path, tokenizer_of: Any) -> None:
    tokenizer = str(tokenizer_of.folder("bytes"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is there already; expected a new folder, or an empty one"):
        exported(ALPACA, "datasets", tmp_path / "taken", tokenizer=tokenizer)
    (tmp_path / "empty").mkdir()
    exported(ALPACA, "datasets", tmp_path / "empty", tokenizer=tokenizer)
    assert (tmp_path / "empty" / "state.json").exists()
    with pytest.raises(RecordError):
        exported([*ALPACA, {"instruction": 3, "output": "x"}], "axolotl", tmp_path / "cut", tokenizer=tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "taken"]
    with pytest.raises(ConfigError, match="writes a folder; found none"):
        write_output(REGISTRY.exporters["axolotl"], [], sys.stdout.buffer)
    with pytest.raises((ConfigError, RunError)):
        exported(ALPACA, "datasets", tmp_path / "taken" / "file" / "x", tokenizer=tokenizer)


def test_the_command_line(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(ALPACA))
    command = [sys.executable, "-m", "templatekit", "render", "--dataset", str(rows)]
    done = subprocess.run([*command, "--format", "openai"], capture_output=True, text=True, check=True)
    assert [json.loads(line)["messages"][1]["content"] for line in done.stdout.splitlines()] == ["Hi!", "3 – ä😀"]
    done = subprocess.run([*command, "--format", "datasets"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected --output FOLDER" in done.stderr or "expected --tokenizer" in done.stderr


def test_the_base_classes_are_public() -> None:
    assert templatekit.FolderExporter.__name__ in templatekit.__all__
