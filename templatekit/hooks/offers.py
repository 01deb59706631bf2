"""`Offers`: the values that plugins offer, by name, and the plugin of each.

If two plugins offer the same name, that name alone is an error that lists both; `plugin:name` chooses one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from templatekit.errors import PluginError, UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A loaded plugin."""

    name: str
    origin: str
    """The distribution and its version, or the file."""
    module: object
    built_in: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginFailure:
    """A plugin that was left out, and the reason."""

    name: str
    origin: str
    reason: str


class _Offer(NamedTuple, Generic[T]):
    name: str
    value: T
    plugin: Plugin

    @property
    def qualified_name(self) -> str:
        return f"{self.plugin.name}:{self.name}"


class Offers(Mapping[str, T], Generic[T]):
    """The values that plugins offer of one kind, by name or by `plugin:name`.

    Iteration gives the name, or `plugin:name` if several plugins offer it.
    """

    def __init__(self, kind: str, failures: list[PluginFailure]) -> None:
        self.kind = kind
        self._failures = failures
        self._offers: dict[str, list[_Offer[T]]] = {}

    def add(self, name: str, value: T, plugin: Plugin) -> None:
        """Add a value; raise `PluginError` if the plugin already offers one of this name."""
        offers = self._offers.setdefault(name, [])
        if any(offer.plugin is plugin for offer in offers):
            raise PluginError(f"plugin {plugin.name!r} ({plugin.origin}) offers two {self.kind}s named {name!r}")
        offers.append(_Offer(name, value, plugin))

    def owner(self, name: str) -> Plugin:
        """Return the plugin that offers `name`."""
        return self._find(name).plugin

    def _find(self, name: str) -> _Offer[T]:
        offers = self._offers.get(name, [])
        if len(offers) > 1:
            who = " and ".join(f"{offer.plugin.name} ({offer.plugin.origin})" for offer in offers)
            names = " or ".join(offer.qualified_name for offer in offers)
            raise PluginError(f"{len(offers)} plugins offer {self.kind} {name!r}: {who}; choose {names}")
        if offers:
            return offers[0]
        for offer in self._all():
            if offer.qualified_name == name:
                return offer
        hint = "".join(f"; plugin {f.name!r} was left out: {f.reason}" for f in self._failures)
        raise UnknownNameError(self.kind, name, list(self), hint=hint)

    def _all(self) -> Iterator[_Offer[T]]:
        return (offer for offers in self._offers.values() for offer in offers)

    def __getitem__(self, name: str) -> T:
        return self._find(name).value

    def __contains__(self, name: object) -> bool:
        return name in set(self) or any(offer.qualified_name == name for offer in self._all())

    def __iter__(self) -> Iterator[str]:
        for offers in self._offers.values():
            for offer in offers:
                yield offer.name if len(offers) == 1 else offer.qualified_name

    def __len__(self) -> int:
        return sum(map(len, self._offers.values()))
