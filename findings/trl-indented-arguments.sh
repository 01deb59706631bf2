#!/usr/bin/env bash
# transformers 5.24.0, TRL 1.16.0: the response templates for Qwen 3.5 strip the indentation of a call's arguments.
#
# Expected: an argument that the chat template writes into a call is read back: code for an editing tool as it is.
# Seen: `xml-inline` with the patterns of `transformers serve` (for tokenizers without a response template) and of TRL
# takes the blank space at both ends of each argument. The first line of the code loses its indentation, and the last
# line break is gone, without a word. JSON's calls, as Qwen 3's, keep both.
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

WRITTEN = {"path": "f.py", "old": "    return x\n", "new": "    return y\n"}
STRIPPED = {key: value.strip() for key, value in WRITTEN.items()}
PARAMETERS = {"type": "object", "properties": {key: {"type": "string"} for key in WRITTEN}}
TOOL = {"type": "function", "function": {"name": "edit", "description": "", "parameters": PARAMETERS}}
CALL = {"type": "function", "function": {"name": "edit", "arguments": WRITTEN}}


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
    """Write the call with the chat template, and read it back."""
    chat = [{"role": "user", "content": "Mend it."}]
    answer = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    options = {"chat_template": chat_template(name), "tools": [TOOL]}
    (prompt,), _ = render_jinja_template([chat], add_generation_prompt=True, **options)
    (text,), _ = render_jinja_template([[*chat, answer]], **options)
    assert text.startswith(prompt)
    found = parse_response(text[len(prompt) :], response_template, prefix=prompt, tools=[TOOL])
    return found["tool_calls"][0]["function"]["arguments"]


print("transformers", transformers.__version__, "trl", trl.__version__)
print("written:", WRITTEN)
for title, name, response_template, expected in (
    ("Qwen 3.5, TRL", "qwen3_5_nothink", of_trl("qwen3_5_nothink"), STRIPPED),
    ("Qwen 3.5, transformers serve", "qwen3_5_nothink", of_serve("qwen3_5"), STRIPPED),
    ("Qwen 3, TRL", "qwen3", of_trl("qwen3"), WRITTEN),
):
    found = read(name, response_template)
    print(f"{title}:", found)
    assert found == expected
PYTHON
