"""`templatekit templates export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from templatekit.cli.options import OVERWRITE, PLUGIN_DIR, add_options, load_registry
from templatekit.cli.terminal import print_data, say
from templatekit.config.data_options import DataOptions
from templatekit.formats.lookup import find_template


@click.command("export")
@click.argument("name")
@click.option("--tokenizer", help="The tokenizer that the model is served with, for its BOS, EOS and control tokens.")
@add_options(DataOptions, only=["trust_remote_code"])
@click.option(
    "--format",
    "format",
    type=click.Choice(["chat_template", "response_template", "modelfile"]),
    default="chat_template",
    show_default=True,
    help="A Hugging Face chat template; how transformers reads its answers, as the JSON of `response_template` in "
    "tokenizer_config.json; or a Modelfile for Ollama.",
)
@click.option("--output", type=click.Path(path_type=Path), help="The file to write; by default stdout.")
@OVERWRITE
@PLUGIN_DIR
def export_template(
    name: str,
    tokenizer: str | None,
    trust_remote_code: bool | None,
    format: str,
    output: Path | None,
    overwrite: bool,
    plugin_dirs: tuple[Path, ...],
) -> None:
    """Write a template in a form that servers read.

    NAME is a template's name, a .jinja file, or `tokenizer` for the tokenizer's own template.
    """
    registry = load_registry(plugin_dirs)
    from templatekit.cli.output import atomic_file, may_replace
    from templatekit.export.modelfile import modelfile
    from templatekit.export.serving import chat_template
    from templatekit.pipeline.inputs import model_paths, plugin_paths, template_paths
    from templatekit.tokens.load import find_tokenizer
    from templatekit.types import NO_TOKENIZER

    replace = False
    if output is not None:
        read = [*template_paths("NAME", name, registry), *plugin_paths(registry)]
        read += model_paths("--tokenizer", tokenizer, registry) if tokenizer else []
        replace = may_replace(output, read, overwrite=overwrite)
    trusted = bool(trust_remote_code)
    loaded = find_tokenizer(tokenizer, registry, trust_remote_code=trusted) if tokenizer else None
    template = find_template(name, registry, chat_template=loaded.chat_template if loaded else None)
    tokens = loaded.special_tokens if loaded else NO_TOKENIZER
    if format == "modelfile":
        text = modelfile(template, loaded)
    elif format == "response_template":
        for loss in template.response_losses(tokens):
            say(f"lost: {loss}", err=True)
        text = json.dumps(template.response_template(tokens), ensure_ascii=False, indent=2) + "\n"
    else:
        text = chat_template(template, tokens)
    if output is None:
        print_data(text)
        return
    with atomic_file(output, replace=replace) as file:
        file.write(text.encode())
