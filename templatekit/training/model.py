"""The model: loaded from a folder, a .gguf file or a hub, and changed so that it can be trained."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal, cast

import torch
import xxhash
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from templatekit.errors import ConfigError, RunError
from templatekit.tokens.load import own_code_at

_PROVENANCE = ("transformers_version", "_name_or_path", "_commit_hash", "auto_map")
"""Keys of a configuration on which nothing depends that a model computes."""


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises `ConfigError` if this machine lacks it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device={name!r}: expected auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"device={name!r}: this machine has {count} CUDA devices; use --device auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device={name!r}: this machine has none; use --device auto")
    return device


def uses_bf16(precision: Literal["auto", "bf16", "fp32"], device: torch.device) -> bool:
    """Whether matrix products run in bf16. `auto` means yes where the hardware has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return False


def load_model(address: str | Path, *, device: torch.device, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model in fp32.

    `address` is a folder, a `.gguf` file, or a name on the hub. Weights come from safetensors or GGUF, never from a
    pickle. Python that lies beside them is run with `trust_remote_code` alone; a type of model that transformers knows
    needs none. Raises `ConfigError` where there is no model at the address, or one that needs its own Python;
    `RunError` where its files are damaged or lack weights.
    """
    path = Path(address)
    gguf: dict[str, str] = {}
    if path.is_file() and path.suffix == ".gguf":
        if find_spec("gguf") is None:
            raise ConfigError(f"{str(path)!r} needs the package gguf: pip install 'templatekit[gguf]'")
        gguf["gguf_file"] = path.name
        path = path.parent
    elif path.is_file():
        raise ConfigError(f"model {str(path)!r} is a file; expected a folder, a .gguf file or a hub name")
    elif path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"model {str(path)!r} holds no config.json; expected a folder saved by transformers")
    trusted = trust_remote_code and not gguf  # Python beside a .gguf file does not belong to it
    name = str(path) if path.exists() else str(address)
    with quiet_transformers():
        try:
            model, found = cast("Any", AutoModelForCausalLM).from_pretrained(
                name,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trusted,
                **gguf,
            )
        except Exception as error:  # damaged files make transformers, safetensors and gguf raise many classes
            if not trusted and (code := own_code_at(path, error)):
                raise ConfigError(f"model {str(address)!r} cannot be loaded: {code}") from error
            reason = " ".join(str(error).split())
            if not path.exists():
                raise ConfigError(
                    f"model {str(address)!r} is no folder, no .gguf file, and the hub: {reason}"
                ) from error
            raise RunError(f"model {str(address)!r} cannot be loaded: {type(error).__name__}: {reason}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RunError(f"model {str(address)!r} lacks weights: {', '.join(missing[:3])}{more}; get the whole model")
    if "gguf_file" in gguf:  # the weights are dequantized by now, but transformers would refuse to save them
        model.hf_quantizer.remove_quantization_config(model)
    # transformers never trains the embedding of the padding token. If the padding token is EOS, its embedding has to be
    # trained.
    model.get_input_embeddings().padding_idx = None
    return cast("PreTrainedModel", model.to(device))


def model_fingerprints(model: PreTrainedModel) -> dict[str, str]:
    """Fingerprints of a loaded model: of every bit of its weights, of its configuration, and of code of its own.

    Weights in memory are hashed, not files: the result is the same for any format and division into files, and nothing
    that the model computes with is left out. It takes 0.11 seconds for a GB of weights (on one core of an AMD EPYC).
    """
    digest = xxhash.xxh3_128()
    seen: set[tuple[int, torch.Size]] = set()  # tied weights are hashed once
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        if (weight.data_ptr(), weight.shape) not in seen:
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            seen.add((weight.data_ptr(), weight.shape))
    configuration = json.dumps(_without_provenance(model.config.to_dict()), sort_keys=True, default=str)
    found = {
        "model weights": digest.hexdigest(),
        "model configuration": hashlib.sha256(configuration.encode()).hexdigest(),
    }
    if not type(model).__module__.startswith("transformers."):  # --trust-remote-code
        files = sorted(Path(inspect.getfile(type(model))).parent.glob("*.py"))
        found["model code"] = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
    return found


def _without_provenance(value: Any) -> Any:
    """A configuration without what says only where it came from."""
    if isinstance(value, dict):
        return {str(key): _without_provenance(item) for key, item in value.items() if key not in _PROVENANCE}
    return [_without_provenance(item) for item in value] if isinstance(value, (list, tuple)) else value


def unwrap(model: PreTrainedModel) -> PreTrainedModel:
    """The causal language model inside PEFT's wrapper, adapters included; a model without wrapper as it is."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else cast("PreTrainedModel", inner())


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers between embeddings and head, whose classes transformers lists; none for a model without that list."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def has_dropout(model: PreTrainedModel) -> bool:
    """Whether the model has dropout in its modules or its attention."""
    rates = (getattr(module, name, 0.0) for module in model.modules() for name in ("p", "attention_dropout"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Make each layer store only its input, and compute its activations again in the backward pass.

    The gradients stay the same to the last bit. Raises `ConfigError` for a model that does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"activation_checkpointing: {type(model).__name__} does not provide for it; leave it out")
    any_model = cast("Any", model)
    # Releases of transformers before 5.23 have the older name only.
    enable = getattr(model, "activation_checkpointing_enable", None) or any_model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # transformers makes the embeddings' output require a gradient, which reentrant checkpointing needs. The
    # checkpointing used here does not need it, and under LoRA the gradient would be computed for nothing.
    any_model.disable_input_require_grads()


def check_vocabulary(model: PreTrainedModel, vocabulary: int) -> None:
    """Raise `ConfigError` where a tokenizer of `vocabulary` ids has more ids than the model has embeddings."""
    rows = min(table.shape[0] for table in _vocabulary_tables(unwrap(model)))
    if vocabulary > rows:
        raise ConfigError(
            f"the tokenizer has ids up to {vocabulary - 1}, the model embeddings for {rows} (0 to {rows - 1}); "
            "use the model's own tokenizer"
        )


def add_token_embeddings(model: PreTrainedModel, tokens: Sequence[int]) -> None:
    """Set the embeddings of new tokens, and their rows in a head that is not tied, to the mean of the rows before them.

    `tokens` are ids that the model has not been trained on. Rows that a model has in reserve are used first, then the
    tables grow.
    """
    if not tokens:
        return
    known = min(tokens)
    if max(tokens) >= min(table.shape[0] for table in _vocabulary_tables(model)):
        with quiet_transformers():
            model.resize_token_embeddings(max(tokens) + 1, mean_resizing=False)
        cast("Any", model).get_input_embeddings().padding_idx = None
    with torch.no_grad():
        for table in _vocabulary_tables(model):
            table[list(tokens)] = table[:known].mean(dim=0)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and reports of transformers; callers raise errors for the reports that matter.

    The progress bar for GGUF files has no switch, so stderr is redirected.
    """
    report: Any = logging
    bars, level = report.is_progress_bar_enabled(), report.get_verbosity()
    report.disable_progress_bar()
    report.set_verbosity_error()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        report.set_verbosity(level)
        if bars:
            report.enable_progress_bar()


def _vocabulary_tables(model: PreTrainedModel) -> list[Tensor]:
    """The weights with one row a token: embeddings, head (unless tied to them), bias of the head."""
    head: Any = cast("Any", model).get_output_embeddings()
    tables = [cast("Any", model).get_input_embeddings().weight]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    if getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    return tables
