"""Compiles templates, and turns what Jinja and a template's expressions raise into errors that name the line."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import jinja2
from jinja2 import TemplateSyntaxError, nodes

from templatekit.errors import RecordError, TemplateError, TemplatekitError
from templatekit.formats.environment import TemplateRefusal


def compile_template(environment: jinja2.Environment, source: str | nodes.Template, name: str) -> jinja2.Template:
    """Compile a template's source or syntax tree; raise `TemplateError` if that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about the code that Jinja generates
            return environment.from_string(source)
    except Exception as error:  # Jinja evaluates constant expressions when it compiles
        raise syntax_error(error, source if isinstance(source, str) else "", name) from None


def syntax_error(error: Exception, source: str, name: str) -> TemplateError:
    """The error for an exception of Jinja's parser or compiler, with the line of the template."""
    if not isinstance(error, TemplateSyntaxError):
        return TemplateError(f"template {name!r} cannot be compiled: {type(error).__name__}: {error}")
    lines = source.splitlines() or [""]
    excerpt = lines[min(error.lineno, len(lines)) - 1].strip()
    return TemplateError(f"template {name!r}, line {error.lineno}: {error.message}; found {excerpt!r}")


@contextmanager
def as_record_errors(template: jinja2.Template, name: str) -> Iterator[None]:
    """Turn whatever the template raises while it renders into a `RecordError`."""
    try:
        yield
    except TemplatekitError:
        raise
    except TemplateRefusal as error:
        raise RecordError(f"template {name!r} refuses: {error}", reason="template_refused") from None
    except Exception as error:  # templates run arbitrary expressions over the data
        line = template_line(error, template)
        raise RecordError(
            f"template {name!r}{line}: {type(error).__name__}: {_with_builtin_names(error)}", reason="template_failed"
        ) from error


def template_line(error: BaseException, template: jinja2.Template) -> str:
    """The line of the template that raised an error, as text for a message; empty if none did."""
    lines = [
        template.get_corresponding_lineno(frame.lineno or 1)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == template.filename
    ]
    return f", line {lines[-1]}" if lines else ""


def _with_builtin_names(error: Exception) -> str:
    """An error's message with `str`, `dict` and `list` in place of the names of the tracked types."""
    names = {"Text": "str", "Dict": "dict", "List": "list"}
    tracked = r"(?:templatekit\.formats\.provenance\.)?Tracked(Text|Dict|List)\b"
    return re.sub(tracked, lambda match: names[match[1]], str(error))
