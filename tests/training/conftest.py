from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

from templatekit.types import RenderedText, TokenizedExample

VOCABULARY = 64
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_OLD_SHAPE = {key: value for key, value in _SHAPE.items() if key != "num_key_value_heads"}
_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SHAPE),
    "llama-tied": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_SHAPE),
    "qwen2-sliding": lambda: Qwen2Config(**_SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen2-moe-sliding": lambda: Qwen2MoeConfig(
        **_SHAPE,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=8),
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=None),
    "mistral-sliding": lambda: MistralConfig(**_SHAPE, sliding_window=5),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "gpt-neox": lambda: GPTNeoXConfig(**_OLD_SHAPE),
    "gemma2": lambda: Gemma2Config(**_SHAPE, head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    "phi3": lambda: Phi3Config(**_SHAPE),
}


@pytest.fixture(params=_CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of model in turn."""
    return str(request.param)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads do not speed up tiny products, and slow them down much while other processes use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_model() -> Callable[..., PreTrainedModel]:
    """Makes a small random model of a kind; equal seeds give equal weights."""

    def make(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        model: PreTrainedModel = cast("Any", AutoModelForCausalLM).from_config(_CONFIGS[kind]())
        return model

    return make


@pytest.fixture
def in_fp64() -> Callable[[PreTrainedModel], PreTrainedModel]:
    """Convert a model to fp64, including its norms, which transformers computes in fp32 for any type of weights."""
    return _in_fp64


def _in_fp64(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            module.forward = _Norm(module, eps, 1.0 if "Gemma" in type(module).__name__ else 0.0)
    return model.double()


class _Norm:
    def __init__(self, module: nn.Module, eps: Any, offset: float) -> None:
        self.module, self.eps, self.offset = module, eps, offset

    def __call__(self, states: Tensor) -> Tensor:
        scaled: Tensor = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.eps)
        return scaled * (cast("Tensor", self.module.weight) + self.offset)


Make = Callable[..., TokenizedExample]


@pytest.fixture
def make_example() -> Make:
    """Makes an example from ids and weights."""
    return _example


def _example(ids: Sequence[int], weights: Sequence[float], row: int = 0) -> TokenizedExample:
    rendered = RenderedText(text="", spans=(), row=row)
    return TokenizedExample(input_ids=tuple(ids), loss_weights=tuple(weights), rendered=rendered)


@pytest.fixture
def examples() -> list[TokenizedExample]:
    """Twelve examples of 2 to 24 tokens: a prompt without loss, then an answer, with weights of several sizes."""
    draw = random.Random(7)
    made = []
    for row in range(12):
        length = draw.randint(2, 24)
        prompt = draw.randint(1, length - 1)
        ids = [draw.randrange(VOCABULARY) for _ in range(length)]
        weight = draw.choice([1.0, 1.0, 0.5])
        made.append(_example(ids, [0.0] * prompt + [weight] * (length - prompt), row))
    return made
