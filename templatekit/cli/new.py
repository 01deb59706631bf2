"""`templatekit new adapter|template|plugin`: create files that work and pass their checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import NamedTuple

import click

from templatekit import __version__
from templatekit.cli.terminal import say
from templatekit.errors import ConfigError

ADAPTER = '''\
"""Records of the shape $name."""

from __future__ import annotations

from collections.abc import Iterable

from templatekit import Adapter, Example, Message, Record, hookimpl, text_of


class $class_name(Adapter):
    """`question` is asked, `answer` is trained."""

    name = "$name"
    description = "question, answer"
    keys = ("question", "answer")
    required = ("question", "answer")

    def to_example(self, record: Record) -> Example:
        question = Message(role="user", content=text_of(record, "question"))
        answer = Message(role="assistant", content=text_of(record, "answer"))
        return Example(messages=(question, answer))

    def to_record(self, example: Example) -> Record:
        question, answer = example.messages
        return {"question": question.content, "answer": answer.content}


@hookimpl
def templatekit_adapters() -> Iterable[Adapter]:
    return [$class_name()]
'''
TEMPLATE = """\
{#- templatekit
description: Questions and answers, as $name has them.
#}
{% if system %}
{{ system }}

{% endif %}
Question: {{ instruction }}
{% if context %}
{{ context }}
{% endif %}
Answer: {{ response }}{{ eos_token }}
"""
PLUGIN_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "templatekit-$name"
version = "0.1.0"
description = "The format $name for templatekit."
readme = "README.md"
requires-python = ">=3.10"
dependencies = ["templatekit>=$version"]

[project.optional-dependencies]
test = ["templatekit[testing]", "pytest"]

[project.entry-points.templatekit]
$name = "$module"

[tool.setuptools]
packages = ["$module"]
package-data = { $module = ["*.jinja", "py.typed"] }
""",
    "README.md": """\
# templatekit-$name

The adapter and the prompt template `$name` for [templatekit](https://pypi.org/project/templatekit/).

```console
pip install --editable '.[test]'
pytest
templatekit preview --dataset rows.jsonl --template $name
```
""",
    "$module/__init__.py": ADAPTER.replace(
        "from collections.abc import Iterable\n", "from collections.abc import Iterable\nfrom pathlib import Path\n"
    ).replace("Record, hookimpl, text_of", "Record, TemplateFile, hookimpl, template_files, text_of")
    + """

@hookimpl
def templatekit_templates() -> Iterable[TemplateFile]:
    return template_files(Path(__file__).parent)
""",
    "$module/$name.jinja": TEMPLATE,
    "$module/py.typed": "",
    "tests/test_format.py": '''\
"""The format keeps what templatekit promises of every format."""

from templatekit.testing import Check, Subject, parametrize_with_checks


@parametrize_with_checks(["$name"])
def test_the_format(subject: Subject, check: Check) -> None:
    check(subject)
''',
}


class _Scaffold(NamedTuple):
    files: Mapping[str, str]
    folder: str
    next_steps: str


KINDS = {
    "adapter": _Scaffold(
        {"$module.py": ADAPTER},
        "",
        "templatekit check $path\n"
        "templatekit preview --plugin-dir $folder --adapter $name --template chatml --dataset ROWS.jsonl",
    ),
    "template": _Scaffold(
        {"$name.jinja": TEMPLATE}, "", "templatekit check $path\ntemplatekit preview --template $path --limit 3"
    ),
    "plugin": _Scaffold(PLUGIN_FILES, "templatekit-$name", "cd $path\npip install --editable '.[test]'\npytest"),
}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="The folder to write to; by default the current one.",
)
def new(kind: str, name: str, directory: Path) -> None:
    """Create an adapter, a template, or a plugin with both.

    An adapter is one Python file, and a template is one Jinja file. A plugin is a Python package with an entry point
    and a test that runs the checks. Each works and passes its checks; change it from there. Existing files are never
    overwritten.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: expected small letters, digits and single hyphens, such as 'my-format'")
    scaffold = KINDS[kind]
    module = name.replace("-", "_")
    names = {
        "name": name,
        "module": f"templatekit_{module}" if kind == "plugin" else module,
        "class_name": "".join(word.capitalize() for word in name.split("-")),
        "version": __version__,
    }
    top = directory / Template(scaffold.folder).substitute(names)
    files = {
        top / Template(path).substitute(names): Template(text).substitute(names)
        for path, text in scaffold.files.items()
    }
    for path in [top, *files] if scaffold.folder else files:
        if path.exists():
            raise ConfigError(f"{str(path)!r} exists; choose another name or --directory")
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:  # also where a link leads to a file that is missing
                file.write(text)
        except OSError as error:
            raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror}") from None
        say(f"wrote {path}")
    path = top if scaffold.folder else next(iter(files))
    say("\nNext:")
    for line in Template(scaffold.next_steps).substitute(names, path=path, folder=directory).splitlines():
        say(f"  {line}")
