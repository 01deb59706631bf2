"""Complete runs on a tiny random model: the run folder's files, serving as in training, and resuming."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import templatekit
from templatekit.errors import ConfigError, RunError
from templatekit.export.serving import stops_of
from templatekit.formats.lookup import find_template
from templatekit.hooks.loading import create_registry
from templatekit.pipeline.pipeline import Pipeline
from templatekit.tokens.load import find_tokenizer

ROWS = [
    {
        "instruction": f"Say the number {number}.",
        "input": "" if number % 2 else f"in words {number}",
        "output": f"It is {number}.",
    }
    for number in range(24)
]
BUNDLED = sorted(create_registry().templates)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and a byte-level tokenizer trained on the rows."""
    folder = tmp_path_factory.mktemp("tiny")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text for row in ROWS for text in row.values()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[0], eos_token=special[1])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def run(tiny_model: Path, rows_file: Path, folder: Path, **options: object) -> templatekit.Run:
    given = {
        "dataset": str(rows_file),
        "model": str(tiny_model),
        "output": folder,
        "epochs": 1,
        "samples": 1,
        "max_new_tokens": 4,
        "lora": False,
        "learning_rate": 1e-2,
        "precision": "fp32",
        **options,
    }
    return templatekit.finetune(given)


@pytest.mark.parametrize("template", BUNDLED)
def test_the_folder_serves_what_was_trained(template: str, tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    done = run(tiny_model, rows_file, tmp_path / "run", template=template, max_steps=2)
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    served = AutoTokenizer.from_pretrained(done.folder)
    registry = create_registry()
    ours = find_tokenizer(str(done.folder), registry)
    pipeline = Pipeline(templatekit.DataOptions(dataset=str(rows_file), template=template), registry, tokenizer=ours)
    stops = stops_of(find_template(template, registry), ours)
    eos = model.generation_config.eos_token_id
    assert set(stops.ids) == set([eos] if isinstance(eos, int) else eos)
    assert tuple(model.generation_config.stop_strings or ()) == stops.strings
    assert served.response_template == find_template(template, registry).response_template(ours.special_tokens)
    for item in pipeline.run(pipeline.open()):
        user = item.example.messages[0]
        message = {"role": "user", "content": user.content}
        if pipeline.template.kind == "instruction":
            message["context"] = user.context
        elif user.context:
            message["content"] += f"\n\n{user.context}"
        prompt = served.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
        assert tuple(prompt) == pipeline.prompt_ids(item.example)
        assert item.tokenized is not None
        assert item.tokenized.input_ids[: len(prompt)] == tuple(prompt)
        assert not any(item.tokenized.loss_weights[: len(prompt)])


@pytest.mark.parametrize("lora", [False, True])
def test_held_out_loss_falls_and_the_run_is_told(lora: bool, tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    done = run(tiny_model, rows_file, tmp_path / "run", lora=lora, epochs=6, lora_rank=4)
    assert done.eval_before is not None and done.eval_after is not None
    assert done.eval_after < done.eval_before - 0.2
    assert done.splits == {"train": 22, "validation": 2}
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, done.steps + 1))
    keys = {"step", "loss", "learning_rate", "grad_norm", "tokens", "computed_tokens", "target_tokens", "seconds"}
    assert all(keys <= line.keys() for line in steps)
    assert (done.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (done.folder / "adapter").is_dir() == lora
    (sample,) = json.loads((done.folder / "samples.json").read_text(encoding="utf-8"))
    assert sample.keys() == {"prompt", "reference", "before", "after"}
    recipe = yaml.safe_load((done.folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["adapter"] == "alpaca"
    assert templatekit.FinetuneOptions.parse(recipe).template == "alpaca"


def test_a_run_trains_on_roles_and_fields_by_their_weight(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    """The first step's loss, over all rows, is the weighted mean over the tokens that `render` gives."""
    train_on = "response=0.5,context=0.1,user.content=0.25"
    done = run(
        tiny_model, rows_file, tmp_path / "run", train_on=train_on, max_steps=1, batch_size=24, pack_tokens=64,
        eval_dataset=str(rows_file),
    )  # fmt: skip
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    (step,) = [line for line in lines if "loss" in line]
    examples = list(templatekit.render(rows_file, template="alpaca", tokenizer=str(tiny_model), train_on=train_on))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    total = weight = 0.0
    for example in examples:
        assert isinstance(example, templatekit.TokenizedExample)
        assert set(example.loss_weights) - {0.1} == {0.0, 0.25, 0.5}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(example.input_ids[1:]), reduction="none")
        total += float((each * torch.tensor(example.loss_weights[1:])).sum())
        weight += sum(example.loss_weights)
    assert step["loss"] == pytest.approx(total / weight, rel=1e-4)
    assert step["target_tokens"] == sum(example.trained_tokens for example in examples)
    assert yaml.safe_load((done.folder / "recipe.yaml").read_text(encoding="utf-8"))["train_on"] == train_on


def test_a_recipe_repeats_a_run(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    first = run(tiny_model, rows_file, tmp_path / "first", max_steps=3)
    recipe = yaml.safe_load((first.folder / "recipe.yaml").read_text(encoding="utf-8"))
    second = templatekit.finetune({**recipe, "output": tmp_path / "second"})
    assert second.eval_after == first.eval_after


def test_packing_changes_nothing_but_the_padding(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    packed = run(tiny_model, rows_file, tmp_path / "packed", max_steps=3)
    padded = run(tiny_model, rows_file, tmp_path / "padded", max_steps=3, packing=False)
    tight = run(tiny_model, rows_file, tmp_path / "tight", max_steps=3, pack_tokens=64)
    for other in (padded, tight):
        assert other.eval_after == pytest.approx(packed.eval_after, rel=1e-5)
    lines = [json.loads((r.folder / "metrics.jsonl").read_text().splitlines()[1]) for r in (packed, padded)]
    assert lines[0]["computed_tokens"] < lines[1]["computed_tokens"]
    assert lines[0]["target_tokens"] == lines[1]["target_tokens"]


def test_a_resumed_run_is_the_unbroken_one(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    whole = run(tiny_model, rows_file, tmp_path / "whole", epochs=3, save_every=4, keep_checkpoints=5)
    broken = tmp_path / "broken"
    shutil.copytree(whole.folder, broken)
    shutil.rmtree(broken / "checkpoints" / "step-00000008")
    shutil.rmtree(broken / "checkpoints" / "step-00000009")
    resumed = run(tiny_model, rows_file, broken, epochs=3, save_every=4, keep_checkpoints=5, resume=True)
    assert resumed.eval_after == whole.eval_after
    losses = [
        [json.loads(line)["loss"] for line in (r.folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        for r in (whole, resumed)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    run(tiny_model, rows_file, tmp_path / "run", max_steps=1)
    with pytest.raises(ConfigError, match="holds another run"):
        run(tiny_model, rows_file, tmp_path / "run", max_steps=1)


def test_resume_without_a_checkpoint(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run and no checkpoint"):
        run(tiny_model, rows_file, tmp_path / "run", resume=True)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    whole = run(tiny_model, rows_file, tmp_path / "whole", max_steps=2)
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("recipe.yaml", "template.jinja", "samples.json", "metrics.jsonl"):
        shutil.copy(whole.folder / name, killed / name)
    again = run(tiny_model, rows_file, killed, max_steps=2, resume=True)
    assert (again.eval_before, again.eval_after) == (whole.eval_before, whole.eval_after)
    losses = [
        [json.loads(line).get("loss") for line in (r.folder / "metrics.jsonl").read_text().splitlines()]
        for r in (whole, again)
    ]
    assert losses[0] == losses[1]


def test_every_prompt_too_long(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 of 24 samples left"):
        run(tiny_model, rows_file, tmp_path / "run", max_length=3)


def test_dolly_adds_its_special_tokens(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    done = run(tiny_model, rows_file, tmp_path / "run", template="dolly", max_steps=1, add_special_tokens=True)
    tokenizer = find_tokenizer(str(done.folder), create_registry())
    assert {"### End", "### Instruction:", "### Response:\n"} <= tokenizer.control_tokens.keys()
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    assert model.get_input_embeddings().get_parameter("weight").shape[0] >= tokenizer.vocabulary_size
    eos = model.generation_config.eos_token_id
    assert tokenizer.id_of("### End") in (eos if isinstance(eos, list) else [eos])


def test_a_format_from_a_folder_of_single_files(tiny_model: Path, tmp_path: Path) -> None:
    plugins = tmp_path / "my_formats"
    plugins.mkdir()
    (plugins / "faq.py").write_text(
        "from templatekit import Adapter, Example, Message, hookimpl, text_of\n"
        "class Faq(Adapter):\n"
        "    name = 'faq'\n"
        "    keys = required = ('question', 'answer')\n"
        "    def to_example(self, record):\n"
        "        return Example(messages=(Message(role='user', content=text_of(record, 'question')),\n"
        "                                 Message(role='assistant', content=text_of(record, 'answer'))))\n"
        "@hookimpl\n"
        "def templatekit_adapters():\n"
        "    return [Faq()]\n",
        encoding="utf-8",
    )
    (plugins / "qa.jinja").write_text("Q: {{ instruction }}\nA: {{ response }}{{ eos_token }}\n", encoding="utf-8")
    data = tmp_path / "faq.jsonl"
    data.write_text('{"question": "a?", "answer": "b"}\n' * 6, encoding="utf-8")
    done = command(
        "finetune", "--plugin-dir", str(plugins), "--dataset", str(data), "--template", "qa", "--model",
        str(tiny_model), "--output", str(tmp_path / "run"), "--max-steps", "1", "--samples", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "adapter faq, template qa" in done.stderr
    assert "kernels" not in done.stderr, "what the packages that LoRA loads would say"
    answer = command("generate", "--model", str(tmp_path / "run"), "--instruction", "a?", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["prompt"] == "Q: a?\nA: "


def test_generate_stops_where_the_template_says(tiny_model: Path) -> None:
    done = command("generate", "--model", str(tiny_model), "--template", "chatml", "--instruction", "Hi", "--json",
                   "--max-new-tokens", "5")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["prompt"].endswith("<|im_start|>assistant\n")
    assert len(result["answer_ids"]) <= 5


def test_generate_loses_no_system_message(tiny_model: Path) -> None:
    """A format without a place for a system message refuses it instead of leaving it out."""
    asked = ("generate", "--model", str(tiny_model), "--instruction", "Hi", "--max-new-tokens", "2")
    refused = command(*asked, "--template", "alpaca", "--system", "Be brief.")
    assert refused.returncode == 2
    assert "system" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert command(*asked, "--template", "chatml", "--system", "Be brief.").returncode == 0


THINKING = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{%- if message.role == 'assistant' and enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


def test_kwargs_are_served_as_they_were_trained(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    """By the tokenizer of the run's folder, by `generate` on it, and by its recipe again."""
    path = tmp_path / "thinking.jinja"
    path.write_text(THINKING, encoding="utf-8")
    kwargs = {"enable_thinking": False}
    done = run(tiny_model, rows_file, tmp_path / "run", template=str(path), chat_template_kwargs=kwargs, max_steps=1)
    served: Any = AutoTokenizer.from_pretrained(done.folder)
    message = [{"role": "user", "content": "a?"}]
    prompt = served.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("<|im_start|>assistant<think></think>")
    ours = find_template(str(path), create_registry(), kwargs=kwargs)
    example = templatekit.Example(messages=(templatekit.Message(role="user", content="a?"),))
    assert ours.prompt(example).text == prompt
    assert find_template(str(done.folder / "template.jinja"), create_registry()).prompt(example).text == prompt
    asked = served.apply_chat_template(message, add_generation_prompt=True, tokenize=False, enable_thinking=True)
    assert asked.endswith("<|im_start|>assistant")
    recipe = yaml.safe_load((done.folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["chat_template_kwargs"] == kwargs
    answer = command("generate", "--model", str(done.folder), "--instruction", "a?", "--prefill", "It is", "--json",
                     "--max-new-tokens", "2")  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["prompt"] == prompt + "It is"
    other = command("generate", "--model", str(done.folder), "--instruction", "a?", "--prefill", "It is",
                    "--chat-template-kwargs", "enable_thinking=true", "--max-new-tokens", "2")  # fmt: skip
    assert other.returncode == 0, other.stderr
    assert other.stdout.startswith("It is")


def test_a_template_that_takes_lists_is_trained_and_served(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "lists.jinja"
    path.write_text(
        "{%- for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part['text'] }}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        encoding="utf-8",
    )
    data = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "It is b."}]
    data.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    done = run(tiny_model, data, tmp_path / "run", template=str(path), max_steps=1, split="train=rest", samples=0)
    assert done.steps == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "train=0.5,test=0.6"], "split"),
        (["--epochs", "0"], "epochs"),
        (["--set", "learning_rat=1"], "did you mean 'learning_rate'?"),
        (["--set", "nonsense"], "key=value"),
        (["--chat-template-kwargs", "x=1"], "template 'alpaca' does not read 'x'; it reads none"),
        (["--model", "no/such/model/here"], "neither a folder"),
        (["--device", "toaster"], "device"),
        (["--config", "missing.yaml"], "cannot be read"),
        (["--resume"], "--resume needs --output"),
        (["--template", "no-such"], "no template named"),
        (["--add-special-tokens"], "lists no special tokens"),
    ],
)
def test_bad_options_end_in_one_line(
    options: list[str], words: str, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    given = ["--dataset", str(rows_file), "--model", str(tiny_model), "--max-steps", "1", "--samples", "0"]
    if "--resume" not in options:
        given += ["--output", str(tmp_path / "run")]
    done = command("finetune", *given, *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_not_finite_names_the_step_and_the_rows(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step \d+"):
        run(tiny_model, rows_file, tmp_path / "run", learning_rate=1e30, epochs=8, clip_norm=None)


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "templatekit"), *arguments],
        capture_output=True, text=True, check=False, timeout=300, cwd=cwd,
    )  # fmt: skip
