"""Plugins as text and as objects, for tests of how they are found and what they offer."""

from __future__ import annotations

import inspect
from types import ModuleType

from templatekit import (
    Adapter,
    Example,
    Message,
    Record,
    Registry,
    hookimpl,
)

ADAPTER = """
from templatekit import Adapter, Example, Message, hookimpl

class Fable(Adapter):
    name = "{name}"
    keys = ("q", "a")
    required = ("q", "a")

    def to_example(self, record):
        {body}
        question, answer = record["q"], record["a"]
        return Example(messages=(Message(role="user", content=question), Message(role="assistant", content=answer)))

@hookimpl
def templatekit_adapters():
    return [Fable()]
"""
PLAIN_TEMPLATE = "Q: {{ instruction }}{{ context }}\nA: {{ response }}\n{{ eos_token }}"


def adapter_source(name: str = "fable", body: str = "pass") -> str:
    return ADAPTER.format(name=name, body=body)


def reasons(registry: Registry) -> dict[str, str]:
    return {failure.name: failure.reason for failure in registry.failures}


def example(question: str = "q", answer: str = "a") -> Example:
    return Example(messages=(Message(role="user", content=question), Message(role="assistant", content=answer)))


class Given(Adapter):
    name = "given"
    keys = ("q",)

    def to_example(self, record: Record) -> Example:
        return example(record["q"])


def offering(items: object, hook: str = "templatekit_adapters") -> ModuleType:
    """A plugin whose hook returns `items`, or calls them."""
    module = ModuleType("offering")

    def implementation() -> object:
        return items() if inspect.isfunction(items) else items

    implementation.__name__ = hook
    setattr(module, hook, hookimpl(implementation))
    return module
