"""Templates that came with a tokenizer or from a file: rendered within bounds.

What chat templates do is counted here, in this process. A template that does anything else is rendered by the worker.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from templatekit.errors import TemplateError
from templatekit.formats.accepted_forms import Takes, Variables
from templatekit.formats.environment import TracingEnvironment, plain_environment
from templatekit.formats.metadata import read_metadata
from templatekit.formats.provenance import Traced, plain_text
from templatekit.formats.sandbox.metering import Uncounted, counting_environment, uncounted_constant
from templatekit.formats.sandbox.worker import WORKER, Request
from templatekit.formats.source import syntax_error
from templatekit.formats.template import Template
from templatekit.hooks.contracts import TemplateFile
from templatekit.types import Example

Method = TypeVar("Method", bound=Callable[..., Any])

LONGEST_SOURCE = 200_000
"""Characters of a template; published ones have up to 20,000."""


class _Thread(threading.local):
    rendering = False


_THREAD = _Thread()


def _bounded(method: Method) -> Method:
    """A method that renders: here while that is counted, in the worker from then on."""

    @wraps(method)
    def bounded(self: ForeignTemplate, *arguments: Any, **options: Any) -> Any:
        if self._here and _THREAD.rendering:
            return method(self, *arguments, **options)  # what is not counted goes to the method that began
        if self._here:
            _THREAD.rendering = True
            try:
                return method(self, *arguments, **options)
            except Uncounted:
                self._here = False
            finally:
                _THREAD.rendering = False
        return self._ask(method.__name__, *arguments, **options)

    return cast("Method", bounded)


class ForeignTemplate(Template):
    """A template that may neither hang, nor fill the memory, nor print without end."""

    def __init__(self, file: TemplateFile, *, strict: bool = True, kwargs: Mapping[str, Any] | None = None) -> None:
        if len(file.source) > LONGEST_SOURCE:
            raise TemplateError(
                f"template {file.name!r}: found {len(file.source):,} characters; expected at most {LONGEST_SOURCE:,}"
            )
        self._file, self._strict, self._kwargs = file, strict, pickle.dumps(kwargs)
        self._end_marker: str | None = None
        try:
            self._line = uncounted_constant(plain_environment().parse(file.source))
        except Exception as error:
            raise syntax_error(error, file.source, file.name) from None
        self._here = self._line is None
        if self._here:
            try:
                super().__init__(file, strict=strict, kwargs=kwargs)
            except Uncounted:
                self._here = False
        if not self._here:
            vars(self).update(self._ask("state"))
            self.metadata = read_metadata(self.original, self.name)

    def ended_by(self, end_marker: str) -> ForeignTemplate:
        """As `Template.ended_by`."""
        changed = cast("ForeignTemplate", super().ended_by(end_marker))
        changed._end_marker = end_marker
        return changed

    render = _bounded(Template.render)
    samples = _bounded(Template.samples)
    prompt = _bounded(Template.prompt)

    @cached_property
    def takes(self) -> Takes:
        """As `Template.takes`."""
        return Takes(self.text)

    @_bounded
    def text(self, variables: Variables) -> str:
        """What it prints, given these variables."""
        return plain_text(self._run(variables))

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        # The other columns of a record may hold anything, and no template reads them: they stay here.
        sent = tuple(replace(value, metadata={}) if isinstance(value, Example) else value for value in arguments)
        answer = WORKER.ask(
            Request(self._file, self._strict, self._kwargs, self._end_marker, method, sent, options, self._line)
        )
        if method != "samples":
            return answer
        kept = arguments[0].metadata
        return tuple(replace(sample, example=replace(sample.example, metadata=kept)) for sample in answer)

    def _tracing(self) -> TracingEnvironment:
        environment = counting_environment()
        environment.refill({})  # for what is worked out when it is compiled
        return environment

    def _run(self, variables: Variables) -> Traced:
        counting_environment().refill(variables)
        return super()._run(variables)


def load_template(address: str, *, kwargs: Mapping[str, Any] | None = None) -> Template:
    """A template from a `.jinja` file, with values for the variables that it reads beyond the standard ones."""
    path = Path(address)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"template file {address!r} cannot be read: {error}") from None
    return ForeignTemplate(TemplateFile(name=path.stem, source=source, path=str(path)), kwargs=kwargs)
