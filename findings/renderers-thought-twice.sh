#!/usr/bin/env bash
# renderers 0.1.12: the end of a Qwen 3 thought that spells "</think>" is given twice, as reasoning and as content.
#
# Expected: each token of an answer is part of the reasoning or of the content. Reasoning ends at the token </think>.
# Seen: the reasoning ends there, and is read whole. The content begins behind the text "</think>" instead, where that is
# written earlier with ordinary tokens: it repeats the rest of the thought, with the end tag. A thought without that
# text is read as expected.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet renderers==0.1.12 transformers==5.24.0 httpx==0.28.1
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from renderers import Qwen3RendererConfig, create_renderer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

backend = Tokenizer(models.BPE())
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
backend.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
plain = Tokenizer.from_str(backend.to_str())  # knows no control tokens: their texts are ordinary tokens
controls = ("im_start", "im_end", "endoftext", "vision_start", "vision_end", "image_pad", "video_pad")
tags = ("tool_call", "tool_response", "think")
backend.add_special_tokens(
    [*(f"<|{name}|>" for name in controls), *(f"<{slash}{name}>" for name in tags for slash in ("", "/"))]
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
renderer = create_renderer(tokenizer, Qwen3RendererConfig())


def read(thought):
    """The reasoning and the content of an answer with this thought."""
    ids = []
    for text in ("<think>", f"\n{thought}\n", "</think>", "\n\nDone.", "<|im_end|>"):
        ids += [backend.token_to_id(text)] if text.startswith("<") else plain.encode(text).ids
    answer = renderer.parse_response(ids)
    return answer.reasoning_content, answer.content


print("renderers", version("renderers"))
for thought in ("Write the tag last.", "Write </think> last."):
    print(repr(thought), "is read as", read(thought))
assert read("Write the tag last.") == ("Write the tag last.", "Done.")
assert read("Write </think> last.") == ("Write </think> last.", "last.\n</think>\n\nDone.")
PYTHON
