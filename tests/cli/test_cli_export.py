"""`templatekit templates export`: complete files, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELFILE = '''# Prompts as the template 'zephyr' writes them. FROM names the model: a folder, a file or a name.
FROM .
TEMPLATE """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "system" }}<|system|>
{{ .Content }}<|end|>{{ "\\n" }}
{{- else if eq .Role "user" }}<|user|>
{{ .Content }}<|end|>{{ "\\n" }}
{{- else if eq .Role "assistant" }}<|assistant|>
{{ .Content }}{{ if not $last }}<|end|>
{{ end }}
{{- else }}{{ slice "no such role" 1 0 }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<|assistant|>{{ "\\n" }}
{{- end }}
{{- end }}"""
PARAMETER stop "<|end|>"
# SYSTEM """You are a helpful assistant."""
'''


def test_a_modelfile(templatekit: Callable[..., Any], tokenizer_folder: Path, tmp_path: Path) -> None:
    options = ("--format", "modelfile", "--tokenizer", tokenizer_folder)
    result = templatekit("templates", "export", "zephyr", *options)
    assert (result.code, result.err, result.out) == (0, "", MODELFILE)
    result = templatekit("templates", "export", "zephyr", *options, "--output", "new/Modelfile")
    assert (result.code, result.err, result.out) == (0, "", "")
    assert (tmp_path / "new" / "Modelfile").read_text() == MODELFILE
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["Modelfile"]


def test_a_chat_template(templatekit: Callable[..., Any]) -> None:
    from templatekit import create_registry
    from templatekit.export.serving import chat_template
    from templatekit.formats.lookup import find_template
    from templatekit.types import NO_TOKENIZER

    registry = create_registry()
    for name in ("alpaca", "qwen3"):
        result = templatekit("templates", "export", name)
        assert (result.code, result.err) == (0, "")
        assert result.out.rstrip("\n") == chat_template(find_template(name, registry), NO_TOKENIZER).rstrip("\n")


def test_a_response_template(templatekit: Callable[..., Any], tokenizer_folder: Path, tmp_path: Path) -> None:
    """transformers finds it in tokenizer_config.json and reads answers by it; what it cannot say is told."""
    from transformers import AutoTokenizer

    export = ("templates", "export", "--format", "response_template", "--tokenizer", tokenizer_folder)
    result = templatekit(*export, "qwen3", "--output", "response_template.json")
    assert (result.code, result.err, result.out) == (0, "", "")
    folder = shutil.copytree(tokenizer_folder, tmp_path / "served")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["response_template"] = json.loads((tmp_path / "response_template.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    served = AutoTokenizer.from_pretrained(folder)
    answer = '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>'
    call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    wanted = {"role": "assistant", "reasoning_content": "Hm.", "tool_calls": [call]}
    assert served.parse_response(answer, prefix="<|im_start|>assistant\n") == wanted
    assert served.parse_response(answer.replace("think", "thought"), prefix="<|im_start|>assistant\n") != wanted

    (tmp_path / "listed.jinja").write_text(
        "{% for m in messages %}{{ '>' if m.role == 'assistant' }}{{ m.content }}{% if m.tool_calls %}[CALLS]["
        "{% for c in m.tool_calls %}{{ c.function.name }}("
        "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}"
        "{{ ', ' if not loop.last }}{% endfor %}){{ ', ' if not loop.last }}{% endfor %}]{% endif %}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    result = templatekit(*export, tmp_path / "listed.jinja")
    assert result.code == 0 and [line.split(":")[0] for line in result.err.splitlines()] == ["lost", "lost"]
    assert json.loads(result.out)["fields"]["tool_calls"]["content"] == "python-call-list"


def test_errors_are_one_line(templatekit: Callable[..., Any], tokenizer_folder: Path, tmp_path: Path) -> None:
    modelfile = ("--format", "modelfile")
    for arguments, words in {
        (
            "mistral-v3",
            *modelfile,
            "--tokenizer",
            tokenizer_folder,
        ): "it does not print each message once, in their order",
        ("vicuna", *modelfile): "it prints the tokenizer's eos_token, and no tokenizer is given (--tokenizer)",
        ("vicunna", *modelfile): "did you mean 'vicuna'?",
        ("tokenizer", *modelfile): "this tokenizer has none",
        ("chatml", "--output", tmp_path): "is a folder; expected a file",
        ("chatml", "--tokenizer", "nowhere"): "'nowhere' is neither a folder",
        ("chatml", "--format", "gguf"): "'gguf' is not one of 'chat_template', 'response_template', 'modelfile'",
    }.items():
        result = templatekit("templates", "export", *arguments)
        assert (result.code, result.out, len(result.lines)) == (2, "", 1), result
        assert words in result.err
    assert list(tmp_path.iterdir()) == []
