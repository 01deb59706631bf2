"""`templatekit cache`: `list` and `clear`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from templatekit.cache.folder import Entry, entries, remove
from templatekit.cli.groups import ListingGroup
from templatekit.cli.terminal import print_json, say
from templatekit.config.cache_folder import cache_folder
from templatekit.errors import UnknownNameError
from templatekit.tokens.disk_cache import cached_files

_CACHE_DIR_OPTION = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="The cache's folder; by default TEMPLATEKIT_CACHE, or templatekit in the user's cache folder.",
)
_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_KEY_LENGTH = 12
"""Number of characters of a key that are shown. They identify the entry if no other key starts with them."""


class _Age(click.ParamType[float]):
    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds of `30m`, `12h`, `7d` or `2w`."""
        match = re.fullmatch(r"(\d{1,6})([mhdw])", str(value).strip())
        if match is None:
            self.fail(f"found {value!r}; expected a number of minutes, hours, days or weeks: 30m, 12h, 7d, 2w", param)
        return int(match[1]) * _SECONDS[match[2]]


@click.group(cls=ListingGroup)
def cache() -> None:
    """The cached examples and tokenizers."""


@cache.command("list")
@_CACHE_DIR_OPTION
@_JSON_OPTION
def list_cache(cache_dir: Path | None, as_json: bool) -> None:
    """List the cached entries, with their size, last use and origin."""
    folder = cache_folder(cache_dir)
    found, tokenizers = entries(folder), cached_files(folder)
    if as_json:
        rows = [entry.as_dict() for entry in found]
        sizes = {"count": len(tokenizers), "bytes": _total_bytes(tokenizers)}
        print_json({"folder": str(folder), "entries": rows, "tokenizers": sizes})
        return
    for entry in found:
        say(
            f"{entry.key[:_KEY_LENGTH]}  {format_bytes(entry.bytes):>8}  {entry.examples:>9,} examples  "
            f"{_age(entry.age):>4} ago  {_describe_origin(entry)}"
        )
    total = format_bytes(sum(entry.bytes for entry in found))
    say(f"{len(found)} in {folder}, {total}")
    if tokenizers:
        say(f"tokenizers: {len(tokenizers)}, {format_bytes(_total_bytes(tokenizers))}")


@cache.command("clear")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option(
    "--older-than", type=_Age(), metavar="AGE", help="Entries that were not used for this long: 30m, 12h, 7d, 2w."
)
@click.option("--all", "clear_all", is_flag=True, help="All entries, and the cached tokenizers.")
@_CACHE_DIR_OPTION
@_JSON_OPTION
def clear_cache(
    keys: tuple[str, ...], older_than: float | None, clear_all: bool, cache_dir: Path | None, as_json: bool
) -> None:
    """Remove cached entries by key, by age, or all.

    The first characters of a key suffice if no other key starts with them.
    """
    if sum((bool(keys), older_than is not None, clear_all)) != 1:
        raise click.UsageError("expected one of: keys (as `cache list` shows them), --older-than AGE, --all")
    folder = cache_folder(cache_dir)
    found = entries(folder)
    selected = [_find_entry(key, found) for key in dict.fromkeys(keys)] if keys else found
    if older_than is not None:
        selected = [entry for entry in found if entry.age > older_than]
    tokenizers = cached_files(folder) if clear_all else []
    tokenizer_bytes = _total_bytes(tokenizers)
    freed = tokenizer_bytes + remove(selected)
    for file in tokenizers:
        file.unlink(missing_ok=True)
    if as_json:
        removed = [entry.key for entry in selected]
        print_json({"removed": removed, "tokenizers": len(tokenizers), "bytes": freed})
        return
    for entry in selected:
        say(f"removed {entry.key[:_KEY_LENGTH]}  {format_bytes(entry.bytes):>8}  {_describe_origin(entry)}")
    if tokenizers:
        say(f"removed tokenizers: {len(tokenizers)}, {format_bytes(tokenizer_bytes)}")
    say(f"removed {len(selected)} of {len(found)}, {format_bytes(freed)}")


def _total_bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _find_entry(key: str, found: list[Entry]) -> Entry:
    matching = [entry for entry in found if entry.key.startswith(key)]
    if not key or len(matching) != 1:
        hint = f"; {len(matching)} keys start with it: give more characters" if key and matching else ""
        raise UnknownNameError("cache entry", key, [entry.key[:_KEY_LENGTH] for entry in found], hint=hint)
    return matching[0]


def format_bytes(size: int) -> str:
    """Return a size in words, in units of 1,000."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _age(seconds: float) -> str:
    for unit in ("w", "d", "h", "m"):
        if seconds >= _SECONDS[unit]:
            return f"{seconds // _SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s"


def _describe_origin(entry: Entry) -> str:
    if not entry.about:
        return "(its origin cannot be read)"
    about = entry.about
    facts = [f"{about.get('dataset')}", f"template {about.get('template')}", f"tokenizer {about.get('tokenizer')}"]
    if entry.damaged:
        facts.append(f"{entry.damaged} shards damaged")
    return ", ".join(facts)
