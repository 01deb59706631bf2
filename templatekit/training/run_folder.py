"""The folder of a run: which one it is, and the files in it that are neither model nor checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from templatekit.config.options import FinetuneOptions
from templatekit.errors import ConfigError, RunError
from templatekit.training.checkpoint import has_checkpoints

RECIPE = "recipe.yaml"
"""The resolved options: with them the run can be repeated."""
TEMPLATE = "template.jinja"
"""The template's source; `generate` prompts with it."""
METRICS = "metrics.jsonl"
PICTURE = "loss.png"
SAMPLES = "samples.json"
SUMMARY = "run.json"


@dataclass(kw_only=True)
class SampledAnswer:
    """One held-out prompt with its reference and the model's answers."""

    prompt: str
    reference: str
    before: str = ""
    after: str = ""


def run_folder(options: FinetuneOptions) -> Path:
    """The folder of the run, made if need be; new unless the run is resumed. Raises `ConfigError`."""
    folder = options.output
    if folder is None:
        if options.resume:
            raise ConfigError("--resume needs --output: the folder of the run to go on with")
        folder = _free_folder(options)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {str(folder)!r} is a file; expected a folder")
    if folder.is_dir() and (folder / RECIPE).exists() and not options.resume:
        raise ConfigError(
            f"output {str(folder)!r} holds another run; go on with it (--resume) or choose another folder (--output)"
        )
    if options.resume and not has_checkpoints(folder) and not (folder / RECIPE).exists():
        # A run that was killed before its first checkpoint has a recipe: it begins anew in its own folder.
        raise ConfigError(
            f"--resume: no run and no checkpoint in {str(folder)!r}; leave --resume out to begin a run there"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output {str(folder)!r} cannot be made: {error.strerror}") from None
    return folder


def _free_folder(options: FinetuneOptions) -> Path:
    """`runs/DATASET-TEMPLATE`, with a number where that is taken."""
    name = f"{Path(options.dataset.split(':')[0]).name.split('.')[0]}-{Path(options.template).stem}"
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def write_recipe(folder: Path, options: FinetuneOptions, *, adapter: str | None, template: str) -> None:
    """Writes the options with what was told by the data filled in, and the template's source."""
    resolved = options.model_copy(update={"output": folder, "adapter": adapter, "resume": False})
    text = yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    _write(folder / TEMPLATE, template)
    _write(folder / RECIPE, text)


def write_samples(folder: Path, samples: list[SampledAnswer]) -> None:
    """Writes the answers, those before training also before there are any after."""
    write_json(folder / SAMPLES, [asdict(sample) for sample in samples])


def read_samples(folder: Path) -> list[SampledAnswer] | None:
    """The answers that a run's first start wrote; None where there are none, or none that can be read."""
    try:
        return [SampledAnswer(**sample) for sample in json.loads((folder / SAMPLES).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for people to read."""
    _write(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Writes a file that is whole or as it was before, whenever the process is killed."""
    staging = path.with_name(f".{path.name}")
    try:
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    except OSError as error:
        raise RunError(f"{str(path)!r} cannot be written: {error.strerror}") from error
