"""What can go wrong, as one small tree.

```
TemplatekitError
├── SourceError(ValueError)        a file or data set cannot be read
├── RecordError(ValueError)        one row cannot be used; names file, row and field
│   └── LeftOut                    one row that the options leave out
├── TemplateError(ValueError)      a template is wrong, or fails on a row
├── TokenizerError(ValueError)     a tokenizer cannot be loaded or lacks something
├── ConfigError(ValueError)        options that do not fit, singly or together
├── PluginError(RuntimeError)      a plugin breaks its contract
├── UnknownNameError(LookupError)  no adapter, template, … of that name; lists the nearest
└── RunError(RuntimeError)         a training run cannot start or go on
```

Messages say what was wanted, what was found, where, and what to do. `exit_code` is the command line's.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def shorten(value: object, limit: int = 60) -> str:
    """`repr(value)`, cut in the middle to fit an error message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 20]}…{text[-15:]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: its close matches, or else every known one."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    return f"known: {', '.join(names) or 'none'}"


class TemplatekitError(Exception):
    """Any error of this package; catch it to catch them all."""

    exit_code = 2


class SourceError(TemplatekitError, ValueError):
    """A file or data set cannot be read."""


NOTHING_TRAINED = "nothing_trained"
"""The reason of a `RecordError` for a text without a trained token: it never leaves the pipeline."""


class RecordError(TemplatekitError, ValueError):
    """One row cannot be used.

    `reason` is a short code under which skipped rows are counted. `source` and `row` are filled in by the pipeline,
    which knows them; an adapter gives `field` and what is wrong.
    """

    def __init__(self, message: str, *, field: str | None = None, reason: str = "bad_record") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.reason = reason
        self.source: str | None = None
        self.row: int | None = None

    def at(self, source: str | None, row: int | None) -> RecordError:
        """The same error, with its place; a place that is already known stays."""
        self.source = self.source or source
        self.row = row if self.row is None else self.row
        return self

    def __str__(self) -> str:
        place = [str(part) for part in (self.source, self.row, self.field) if part is not None]
        return f"{':'.join(place)}: {self.message}" if place else self.message


class LeftOut(RecordError):
    """A row that the options leave out: counted under its reason, and nothing to stop at."""


class TemplateError(TemplatekitError, ValueError):
    """A template is wrong in itself, or fails on a row."""


class TokenizerError(TemplatekitError, ValueError):
    """A tokenizer cannot be loaded, or lacks what a template needs."""


class ConfigError(TemplatekitError, ValueError):
    """Options that do not fit, singly or together."""


class PluginError(TemplatekitError, RuntimeError):
    """A plugin breaks its contract."""


class UnknownNameError(TemplatekitError, LookupError):
    """Nothing of that name; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"no {kind} named {name!r}; {nearest(name, known)}{hint}")


class RunError(TemplatekitError, RuntimeError):
    """A training run cannot start or go on."""

    exit_code = 1
