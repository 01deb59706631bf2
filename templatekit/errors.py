"""The exceptions of this package, as one small tree.

```
TemplatekitError
├── SourceError(ValueError)        a file or data set cannot be read
├── RecordError(ValueError)        one row cannot be used; names file, row and field
│   └── ExcludedRecord             one row that the options exclude (a filter, a duplicate)
├── TemplateError(ValueError)      a template has an error, or fails on a row
│   └── NoEndMarkerError           an answer ends in a way that leaves its end marker open
├── TokenizerError(ValueError)     a tokenizer cannot be loaded or lacks something
├── ConfigError(ValueError)        an option has a wrong value, or options contradict each other
├── PluginError(RuntimeError)      a plugin breaks its contract
├── UnknownNameError(LookupError)  no adapter, template, … has that name; lists close matches
└── RunError(RuntimeError)         a training run cannot start or continue
```

Messages say what was expected, what was found, where, and what to do. The command line exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def shorten(value: object, limit: int = 60) -> str:
    """Return `repr(value)`, with the middle cut out if it is too long for an error message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 20]}…{text[-15:]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt name: its close matches, or all known names if there are none."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    return f"known: {', '.join(names) or 'none'}"


class TemplatekitError(Exception):
    """Base class of all errors of this package."""

    exit_code = 2


class SourceError(TemplatekitError, ValueError):
    """A file or data set cannot be read."""


NOTHING_TRAINED = "nothing_trained"
"""The reason of a `RecordError` for a text without a trained token. Such a text is never passed on."""


class RecordError(TemplatekitError, ValueError):
    """One row cannot be used.

    An adapter gives the message, the `field`, and the `reason`: a short code under which skipped rows are counted. The
    pipeline adds `source` and `row`.
    """

    def __init__(self, message: str, *, field: str | None = None, reason: str = "bad_record") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.reason = reason
        self.source: str | None = None
        self.row: int | None = None

    def at(self, source: str | None, row: int | None) -> RecordError:
        """Set the source and the row where they are not yet known, and return this error."""
        self.source = self.source or source
        self.row = row if self.row is None else self.row
        return self

    def __str__(self) -> str:
        location = [str(value) for value in (self.source, self.row, self.field) if value is not None]
        return f"{':'.join(location)}: {self.message}" if location else self.message


class ExcludedRecord(RecordError):
    """A row that the options exclude. It is counted under its reason and never stops a run."""


class TemplateError(TemplatekitError, ValueError):
    """A template has an error, or fails on a row."""


class NoEndMarkerError(TemplateError):
    """It is open which text ends an answer."""


class TokenizerError(TemplatekitError, ValueError):
    """A tokenizer cannot be loaded, or lacks something that a template needs."""


class ConfigError(TemplatekitError, ValueError):
    """An option has a wrong value, or options contradict each other."""


class PluginError(TemplatekitError, RuntimeError):
    """A plugin breaks its contract."""


class UnknownNameError(TemplatekitError, LookupError):
    """Nothing has that name; the message lists close matches."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.kind = kind
        self.name = name
        super().__init__(f"no {kind} named {name!r}; {nearest(name, known)}{hint}")


class RunError(TemplatekitError, RuntimeError):
    """A training run cannot start or continue."""

    exit_code = 1
