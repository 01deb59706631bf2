"""`templatekit finetune`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from templatekit.cli.options import PLUGIN_DIR, add_options, by_name, given_options, load_registry, parse_setting
from templatekit.cli.terminal import say
from templatekit.config.finetune_options import FinetuneOptions
from templatekit.config.text_files import read_text_file
from templatekit.errors import ConfigError
from templatekit.views import visible

if TYPE_CHECKING:
    from templatekit.training.run import Run


@click.command()
@add_options(FinetuneOptions)
@click.option("--config", type=click.Path(path_type=Path), help="A YAML recipe: these options by name.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any option by name, as in a recipe; may be given several times, for each option once.",
)
@PLUGIN_DIR
def finetune(config: Path | None, settings: tuple[str, ...], plugin_dirs: tuple[Path, ...], **options: Any) -> None:
    """Fine-tune a model; by default the small built-in one, on the bundled data set.

    transformers and vLLM can load the folder that --output names. The folder also holds all that is needed to repeat
    the run. An option on the command line overrides --set, which overrides the recipe.
    """
    values = {**_read_recipe(config), **by_name(map(parse_setting, settings), "--set"), **given_options(options)}
    checked = FinetuneOptions.parse(values, source=str(config) if config and not settings else None)
    registry = load_registry(plugin_dirs)
    is_first = os.environ.get("RANK", "0") == "0"  # set by torchrun; one process prints for all
    if is_first:
        say("Loading the libraries and the model …", err=True)
    from templatekit.training.run import finetune as run_it

    run = run_it(checked, registry=registry, say=partial(say, err=True))
    if is_first:
        _print_report(run)


def _read_recipe(path: Path | None) -> dict[str, Any]:
    """Return the options of a recipe, none without one."""
    if path is None:
        return {}
    from templatekit.config.strict_yaml import parse_yaml

    try:
        values = parse_yaml(read_text_file(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {str(path)!r}: expected `name: value` lines; found {type(values).__name__}")
    named = by_name(values.items(), f"recipe {str(path)!r}")
    if named.get("trust_remote_code", False) is not False:  # a recipe may come from anybody, and runs no code otherwise
        raise ConfigError(
            f"recipe {str(path)!r}: found trust_remote_code={named['trust_remote_code']!r}, which would run Python of "
            "the model; expected it on the command line alone: --trust-remote-code"
        )
    return named


def _print_report(run: Run) -> None:
    """Print the answers before and after training side by side, then the results of the run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if run.samples:
        table = Table("prompt", "expected", "before", "after", show_lines=True)
        for sample in run.samples:
            # As `Text`, since in a plain string square brackets would be markup.
            texts = (sample.prompt, sample.reference, sample.before, sample.after)
            table.add_row(*(Text(visible(text)) for text in texts))
        Console().print(table)
    if run.eval_before is not None and run.eval_after is not None:
        say(f"held-out loss: {run.eval_before:.4f} before, {run.eval_after:.4f} after")
    if run.stopped_early:
        say(f"stopped after step {run.steps}: the held-out loss had stopped falling")
    if run.best_step is not None:
        say(f"the model is from step {run.best_step}, which had the lowest held-out loss")
    say(run.cost.line())
    say(f"{run.steps} steps in {run.seconds:.0f} s; the model and all about the run: {run.folder}")
    say(f"try it: templatekit generate --model {run.folder} --instruction 'Name three colors.'")
