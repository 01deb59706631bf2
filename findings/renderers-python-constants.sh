#!/usr/bin/env bash
# renderers 0.1.12: the Qwen 3.5 renderer calls a call malformed that it wrote itself, if an argument is true or false.
#
# Expected: what a renderer writes for a call, it reads back as that call; the tool's schema says that it is a boolean.
# Seen: like Qwen's own chat template it writes Python's True. Its parser reads JSON alone, so that the argument comes
# back as the text "True", and the call with the status invalid_json. Numbers and lists come back as they were.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet renderers==0.1.12 transformers==5.24.0 httpx==0.28.1
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from renderers import Qwen35RendererConfig, create_renderer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

backend = Tokenizer(models.BPE())
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
backend.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
controls = ("im_start", "im_end", "endoftext", "vision_start", "vision_end", "image_pad", "video_pad")
tags = ("tool_call", "tool_response", "think")
backend.add_special_tokens(
    [*(f"<|{name}|>" for name in controls), *(f"<{slash}{name}>" for name in tags for slash in ("", "/"))]
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
renderer = create_renderer(tokenizer, Qwen35RendererConfig())

types = {"count": "integer", "names": "array", "on": "boolean"}
values = {"count": 3, "names": ["a"], "on": True}
properties = {name: {"type": kind} for name, kind in types.items()}
tool = {"name": "set", "description": "", "parameters": {"type": "object", "properties": properties}}


def read_back(arguments):
    """The arguments and the status of a call, as the renderer reads what it wrote."""
    call = {"type": "function", "function": {"name": "set", "arguments": arguments}}
    question = {"role": "user", "content": "Please."}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    prompt = renderer.render_ids([question], tools=[tool], add_generation_prompt=True)
    ids = renderer.render_ids([question, answer], tools=[tool])
    start = len(ids) - ids[::-1].index(tokenizer.convert_tokens_to_ids("<tool_call>")) - 1
    (read,) = renderer.parse_response(ids[start:], tools=[tool], prompt_ids=prompt).tool_calls
    return read.arguments, str(read.status)


print("renderers", version("renderers"))
found = {name: read_back({name: value}) for name, value in values.items()}
for name, read in found.items():
    print(values[name], "is read back as", *read)
assert found["count"] == ({"count": 3}, "ok")
assert found["names"] == ({"names": ["a"]}, "ok")
assert found["on"] == ({"on": "True"}, "invalid_json")
PYTHON
