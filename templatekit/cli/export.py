"""`templatekit templates export`."""

from __future__ import annotations

from pathlib import Path

import click

from templatekit.cli.options import PLUGIN_DIR, load_registry
from templatekit.formats.lookup import find_template


@click.command("export")
@click.argument("name")
@click.option("--tokenizer", help="The tokenizer it is served with: its BOS, EOS and control tokens.")
@click.option(
    "--format",
    "format",
    type=click.Choice(["chat_template", "modelfile"]),
    default="chat_template",
    show_default=True,
    help="A Hugging Face chat template, or a Modelfile for Ollama.",
)
@click.option("--output", type=click.Path(path_type=Path), help="The file to write, in place of standard output.")
@PLUGIN_DIR
def export_template(
    name: str, tokenizer: str | None, format: str, output: Path | None, plugin_dirs: tuple[Path, ...]
) -> None:
    """Write a template as servers read it.

    NAME is a template's name, a .jinja file, or `tokenizer` for the tokenizer's own.
    """
    registry = load_registry(plugin_dirs)
    from templatekit.cli.output import whole_file
    from templatekit.export.modelfile import modelfile
    from templatekit.export.serving import chat_template
    from templatekit.tokens.load import find_tokenizer
    from templatekit.types import NO_TOKENIZER

    found = find_tokenizer(tokenizer, registry) if tokenizer else None
    template = find_template(name, registry, chat_template=found.chat_template if found else None)
    if format == "modelfile":
        text = modelfile(template, found)
    else:
        text = chat_template(template, found.special_tokens if found else NO_TOKENIZER)
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    with whole_file(output) as file:
        file.write(text.encode())
