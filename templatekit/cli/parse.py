"""`templatekit parse`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from templatekit.cli.options import OVERWRITE, PLUGIN_DIR, add_options, given_options, load_registry
from templatekit.cli.output import atomic_file, may_replace
from templatekit.cli.terminal import print_json, safe_on_terminal, say
from templatekit.config.data_options import DataOptions
from templatekit.errors import ConfigError, RecordError, shorten
from templatekit.formats.answers.grammar import AnswerGrammar
from templatekit.formats.lookup import TOKENIZER_TEMPLATE, find_template
from templatekit.pipeline.inputs import check_output_file, read_paths
from templatekit.serving.answers import AnswerCounts, AnswerReader, as_row
from templatekit.sources.limits import MEGABYTE, Limits
from templatekit.sources.opening import open_source
from templatekit.tokens.load import find_tokenizer

_OPTIONS = (
    "tokenizer",
    "columns",
    "chat_template_kwargs",
    "limit",
    "on_error",
    "max_record_size",
    "trust_remote_code",
)
_SHOWN = 3
"""How many examples of what cannot be told apart are shown."""


@click.command()
@click.option("--dataset", help="The answers: a file, a folder, a pattern, a URL, or - for standard input.")
@click.option(
    "--template",
    help="The template that prompted them: a name, a .jinja file, or `tokenizer` for the model's own, which is the "
    "default with a tokenizer.",
)
@add_options(DataOptions, only=_OPTIONS)
@click.option("--output", type=click.Path(path_type=Path), help="The file to write; by default stdout.")
@OVERWRITE
@click.option("--show-grammar", is_flag=True, help="Show the form of the template's answers, and read nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@PLUGIN_DIR
def parse(
    output: Path | None,
    overwrite: bool,
    show_grammar: bool,
    as_json: bool,
    plugin_dirs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Read what a model wrote, and write each answer as a message: reasoning, content and tool calls.

    A row holds an answer as text (answer, completion, response, …) or as ids (answer_ids, completion_ids, …), and may
    hold its prompt, which can begin the answer, and the tools, which give arguments their types. Ids need --tokenizer;
    they are read exactly, since a control token among them is never mistaken for text. Writes one JSON object for each
    row: row, message, and problems and leftovers of answers that are cut or broken.
    """
    registry = load_registry(plugin_dirs)
    if options["dataset"] is None and not show_grammar:
        raise ConfigError("expected the answers to read: --dataset FILE, or - for standard input")
    if options["template"] is None:
        if options["tokenizer"] is None:
            raise ConfigError("expected the template that prompted the answers: --template, or the model's --tokenizer")
        options["template"] = TOKENIZER_TEMPLATE
    data = DataOptions.parse(given_options(options))
    read = read_paths(data, registry)
    replace = output is not None and may_replace(output, read, overwrite=overwrite)
    if output is None and not show_grammar:
        check_output_file(Path("/dev/stdout"), "standard output", read)
    tokenizer = None
    if data.tokenizer is not None:
        tokenizer = find_tokenizer(data.tokenizer, registry, trust_remote_code=data.trust_remote_code)
    template = find_template(
        data.template,
        registry,
        chat_template=None if tokenizer is None else tokenizer.chat_template,
        kwargs=data.chat_template_kwargs,
    )
    reader = AnswerReader(template, tokenizer)
    if show_grammar:
        say(str(reader.grammar))
        for line in _notes(reader.grammar):
            say(line)
        return
    for line in _notes(reader.grammar):
        say(line, err=True)
    if tokenizer is None and "eos_token" in template.variables:
        say("note: the template ends answers with eos_token, which only a tokenizer names (--tokenizer)", err=True)
    counts = AnswerCounts()
    limits = Limits(record=data.max_record_size * MEGABYTE)
    records = open_source(data.dataset, registry, columns=data.columns, limit=data.limit, limits=limits)

    def rows() -> Iterator[bytes]:
        for row, record in enumerate(records):
            try:
                if isinstance(record, RecordError):
                    raise record
                parsed = reader.read(record)
            except RecordError as error:
                if data.on_error != "skip":
                    raise error.at(data.dataset, row) from None
                counts.refused[error.reason] += 1
                continue
            counts.add(parsed)
            yield json.dumps(as_row(parsed, row), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"

    with ExitStack() as stack:
        opened = safe_on_terminal(sys.stdout.buffer) if output is None else atomic_file(output, replace=replace)
        file = stack.enter_context(opened)
        for content in rows():
            file.write(content)
        file.flush()
    if not counts.answers and not counts.refused:
        raise ConfigError(f"--dataset {data.dataset}: found no rows")
    if as_json:
        print_json(counts.as_dict(), err=True)
    else:
        for text in counts.lines():
            say(text, err=True)


def _notes(grammar: AnswerGrammar) -> Iterator[str]:
    """What cannot be read, or not told apart, in words."""
    for field, why in grammar.lacks.items():
        yield f"note: {field} of this template's answers cannot be read: {why}"
    for unread in grammar.unread[:_SHOWN]:
        yield f"note: not read as it was written: {shorten(unread.text, 120)} ({unread.problem})"
    for alike in grammar.alike[:_SHOWN]:
        yield f"note: written alike, the first is what is read: {_json(alike.first)} and {_json(alike.second)}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
