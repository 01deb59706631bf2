"""Untrusted templates, which come from a file or a tokenizer: they render like all others, but within limits.

Ordinary chat templates are metered in this process. The worker renders a template that cannot be metered.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import jinja2

from templatekit.config.text_files import read_text_file
from templatekit.errors import TemplateError
from templatekit.formats.accepted_forms import Variables
from templatekit.formats.environment import PlainEnvironment, ProvenanceEnvironment, plain_environment
from templatekit.formats.metadata import read_metadata
from templatekit.formats.prefixes import PrefixTexts
from templatekit.formats.provenance import TrackedText
from templatekit.formats.sandbox.metering import (
    NeedsWorker,
    find_unmetered_constant,
    metered_environment,
    metered_plain_environment,
)
from templatekit.formats.sandbox.worker import WORKER, Request
from templatekit.formats.template import Template
from templatekit.formats.template_errors import compile_template, syntax_error
from templatekit.hooks.contracts import TemplateFile
from templatekit.types import EmptyThought, Example

Method = TypeVar("Method", bound=Callable[..., Any])

MAX_SOURCE_LENGTH = 200_000
"""The most characters of a template; published ones have up to 20,000."""


class _Thread(threading.local):
    """Whether this thread is inside a metered method."""

    is_metering = False


_THREAD = _Thread()


def _limited(method: Method) -> Method:
    """Run a rendering method metered in this process; from the first `NeedsWorker` on, run it in the worker."""

    @wraps(method)
    def limited(self: UntrustedTemplate, *arguments: Any, **options: Any) -> Any:
        if self._in_process and _THREAD.is_metering:
            return method(self, *arguments, **options)  # the outermost method catches `NeedsWorker`
        if self._in_process:
            _THREAD.is_metering = True
            try:
                return method(self, *arguments, **options)
            except NeedsWorker:
                self._in_process = False
            finally:
                _THREAD.is_metering = False
        return self._call_worker(method.__name__, *arguments, **options)

    return cast("Method", limited)


class UntrustedTemplate(Template):
    """A template that cannot hang, fill the memory or print without end."""

    def __init__(self, file: TemplateFile, *, strict: bool = True, kwargs: Mapping[str, Any] | None = None) -> None:
        if len(file.source) > MAX_SOURCE_LENGTH:
            raise TemplateError(
                f"template {file.name!r}: found {len(file.source):,} characters; expected at most {MAX_SOURCE_LENGTH:,}"
            )
        self._file, self._strict, self._kwargs = file, strict, pickle.dumps(kwargs)
        self._end_marker: str | None = None
        self.empty_thought = "keep"
        try:
            self._unmetered_line = find_unmetered_constant(plain_environment().parse(file.source))
        except Exception as error:
            raise syntax_error(error, file.source, file.name) from None
        self._in_process = self._unmetered_line is None
        if self._in_process:
            try:
                super().__init__(file, strict=strict, kwargs=kwargs)
            except NeedsWorker:
                self._in_process = False
        if not self._in_process:
            vars(self).update(self._call_worker("state"))
            self.metadata = read_metadata(self.original, self.name)
            self._grammars = {}

    def ended_by(self, end_marker: str) -> UntrustedTemplate:
        """As `Template.ended_by`."""
        changed = cast("UntrustedTemplate", super().ended_by(end_marker))
        changed._end_marker = end_marker
        return changed

    def with_empty_thought(self, empty_thought: EmptyThought) -> UntrustedTemplate:
        """As `Template.with_empty_thought`."""
        return cast("UntrustedTemplate", super().with_empty_thought(empty_thought))

    render = _limited(Template.render)
    samples = _limited(Template.samples)
    prompt = _limited(Template.prompt)
    _text = _limited(Template._text)
    _write_answer = _limited(Template._write_answer)

    def _call_worker(self, method: str, *arguments: Any, **options: Any) -> Any:
        # The metadata, the other columns of the record, is not sent: it may hold anything, and no template reads it.
        sent = tuple(replace(value, metadata={}) if isinstance(value, Example) else value for value in arguments)
        response = WORKER.call(
            Request(
                self._file,
                self._strict,
                self._kwargs,
                self._end_marker,
                self.empty_thought,
                method,
                sent,
                options,
                self._unmetered_line,
            )
        )
        if method != "samples":
            return response
        metadata = arguments[0].metadata
        return tuple(replace(sample, example=replace(sample.example, metadata=metadata)) for sample in response)

    @staticmethod
    def _environment() -> ProvenanceEnvironment:
        environment = metered_environment()
        environment.refill({})  # for constant expressions, which are evaluated while compiling
        return environment

    def _render_variables(self, variables: Variables) -> TrackedText:
        metered_environment().refill(variables)
        return super()._render_variables(variables)

    @staticmethod
    def _text_environment() -> PlainEnvironment:
        environment = metered_plain_environment()
        environment.refill({})
        return environment

    @cached_property
    def _text_template(self) -> jinja2.Template:
        return compile_template(self._text_environment(), self.source, self.name)

    def _print_parts(self, variables: Variables) -> PrefixTexts | None:
        try:
            return super()._print_parts(variables)
        except NeedsWorker:  # all parts together may cost more than one text may
            return None

    def _render_text(self, template: jinja2.Template, variables: Variables) -> str:
        metered_plain_environment().refill(variables)
        return super()._render_text(template, variables)


def load_template(address: str, *, kwargs: Mapping[str, Any] | None = None) -> Template:
    """Read a template from a `.jinja` file, with values for the variables beyond the standard ones that it reads."""
    path = Path(address)
    try:
        source = read_text_file(path)
    except (OSError, ValueError) as error:
        raise TemplateError(f"template file {address!r} cannot be read: {error}") from None
    return UntrustedTemplate(TemplateFile(name=path.stem, source=source, path=str(path)), kwargs=kwargs)
