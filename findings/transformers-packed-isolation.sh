#!/usr/bin/env bash
# transformers 5.24.0: packed examples see each other unless use_cache=False is passed and no attention mask is.
#
# Expected: with position_ids that restart, two examples in one row do not attend to each other; a mask of ones, which
# says that no token is padding, changes nothing, and neither does a cache that is thrown away.
# Seen: that holds only for use_cache=False without a mask. By default (use_cache is on where code calls the model itself),
# or with use_cache=False and a mask of ones, the second example attends to the first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
)
model = LlamaForCausalLM(config).eval()
first, second = torch.randint(50, (1, 6)), torch.randint(50, (1, 7))
positions = torch.cat([torch.arange(6), torch.arange(7)])[None]
ones = torch.ones(1, 13, dtype=torch.long)


@torch.no_grad()
def difference(**options):
    """How far the second example's logits are from those it has alone."""
    packed = model(torch.cat([first, second], 1), position_ids=positions, **options).logits[0, 6:]
    return float((packed - model(second).logits[0]).abs().max())


print("transformers", transformers.__version__, "torch", torch.__version__)
found = {
    "by default": difference(),
    "a mask of ones": difference(attention_mask=ones, use_cache=False),
    "use_cache=False": difference(use_cache=False),
}
for name, value in found.items():
    print(f"{name}: {value:.2g}")
assert found["by default"] > 0.01
assert found["a mask of ones"] > 0.01
assert found["use_cache=False"] < 1e-5
PYTHON
