#!/usr/bin/env bash
# transformers 5.24.0, TRL 1.16.0: a call of a function with a hyphen in its name becomes text, or is refused.
#
# Expected: a call that the chat template writes is read as one. Names of functions may hold hyphens: OpenAI's interface
# allows them, and many MCP servers use them, as in `resolve-library-id`.
# Seen: TRL's response template for LFM2.5 takes names to be `\w+`. Such a call stays in the content, without an error,
# and of two calls the one with a hyphen is lost that way. For Gemma 4, TRL and `transformers serve` open a call named up
# to the hyphen and raise ValueError over the rest.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 trl==1.16.0
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import ast
import importlib.util
import pathlib
from types import SimpleNamespace

import transformers
import trl
from transformers.utils.chat_parsing import parse_response
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import add_response_schema

NAMES = ("get_docs", "resolve-library-id")
PARAMETERS = {"type": "object", "properties": {"name": {"type": "string"}}}


def chat_template(name):
    return (pathlib.Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def of_trl(name):
    return add_response_schema(SimpleNamespace(chat_template=chat_template(name))).response_template


def of_serve(kind):
    """From the source: to import it takes a server's packages."""
    path = pathlib.Path(importlib.util.find_spec("transformers").origin).parent / "cli" / "serving" / "utils.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_RESPONSE_TEMPLATE_FALLBACKS":
            return next(found for kinds, found in ast.literal_eval(node.value).items() if kind in kinds)


def read(name, response_template):
    """Write two calls with the chat template, and read them back: the content, and the names of the calls."""
    calls = [{"type": "function", "function": {"name": name, "arguments": {"name": "trl"}}} for name in NAMES]
    tools = [{"type": "function", "function": {"name": n, "description": "", "parameters": PARAMETERS}} for n in NAMES]
    chat = [{"role": "user", "content": "Look it up."}]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    options = {"chat_template": chat_template(name), "tools": tools}
    (prompt,), _ = render_jinja_template([chat], add_generation_prompt=True, **options)
    (text,), _ = render_jinja_template([[*chat, answer]], **options)
    assert text.startswith(prompt)
    try:
        found = parse_response(text[len(prompt) :], response_template, prefix=prompt, tools=tools)
    except ValueError as error:
        return "ValueError", str(error).splitlines()[0]
    return found.get("content", ""), [call["function"]["name"] for call in found["tool_calls"]]


print("transformers", transformers.__version__, "trl", trl.__version__)
print("written:", NAMES)
found = {
    "LFM2.5, TRL": read("lfm2_2_5", of_trl("lfm2_2_5")),
    "Gemma 4, TRL": read("gemma4_v5", of_trl("gemma4_v5")),
    "Gemma 4, transformers serve": read("gemma4_v5", of_serve("gemma4")),
    "Qwen 3, TRL": read("qwen3", of_trl("qwen3")),
}
for title, seen in found.items():
    print(f"{title}:", seen)
assert found["LFM2.5, TRL"] == (", resolve-library-id(name='trl')]<|tool_call_end|>", ["get_docs"])
assert found["Gemma 4, TRL"][0] == found["Gemma 4, transformers serve"][0] == "ValueError"
assert found["Qwen 3, TRL"] == ("", list(NAMES))
PYTHON
