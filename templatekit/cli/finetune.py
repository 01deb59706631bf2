"""`templatekit finetune`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from templatekit.cli.options import PLUGIN_DIR, given, load_registry, option_set, parse_setting
from templatekit.config.options import FinetuneOptions
from templatekit.errors import ConfigError

if TYPE_CHECKING:
    from templatekit.training.run import Run


@click.command()
@option_set(FinetuneOptions)
@click.option("--config", type=click.Path(path_type=Path), help="A YAML recipe with the same names as these options.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any option by name, as in a recipe.")
@PLUGIN_DIR
def finetune(config: Path | None, settings: tuple[str, ...], plugin_dirs: tuple[Path, ...], **options: Any) -> None:
    """Fine-tune a model; with no options the small built-in one, on the bundled set.

    The folder that --output names can be loaded by transformers and vLLM, and holds what is needed to repeat the run.
    An option on the command line goes before --set, and that before the recipe.
    """
    values = {**_recipe(config), **dict(parse_setting(setting) for setting in settings), **given(options)}
    checked = FinetuneOptions.parse(values, source=str(config) if config and not settings else None)
    registry = load_registry(plugin_dirs)
    first = os.environ.get("RANK", "0") == "0"  # torchrun's; the others have the same to say
    if first:
        click.echo("Loading the libraries and the model …", err=True)
    from templatekit.training.run import finetune as run_it

    run = run_it(checked, registry=registry, say=lambda line: click.echo(line, err=True))
    if first:
        _show(run)


def _recipe(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {str(path)!r}: expected `name: value` lines; found {type(values).__name__}")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _show(run: Run) -> None:
    """Answers side by side, then what came of the run."""
    from rich.console import Console
    from rich.table import Table

    if run.samples:
        table = Table("prompt", "expected", "before", "after", show_lines=True)
        for sample in run.samples:
            table.add_row(*(_plain(text) for text in (sample.prompt, sample.reference, sample.before, sample.after)))
        Console().print(table)
    if run.eval_before is not None and run.eval_after is not None:
        click.echo(f"held-out loss: {run.eval_before:.4f} before, {run.eval_after:.4f} after")
    if run.stopped_early:
        click.echo(f"stopped after step {run.steps}: the held-out loss had ceased to fall")
    if run.best_step is not None:
        click.echo(f"the model is that of step {run.best_step}, whose held-out loss was the lowest")
    click.echo(run.cost.line())
    click.echo(f"{run.steps} steps in {run.seconds:.0f} s; the model and all about the run: {run.folder}")
    click.echo(f"try it: templatekit generate --model {run.folder} --instruction 'Name three colors.'")


def _plain(text: str) -> Any:
    """Text for a table cell, in which square brackets are only brackets."""
    from rich.text import Text

    return Text(text)
