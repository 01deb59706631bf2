"""`templatekit cache`: `list` and `clear`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from templatekit.cache import Entry, entries, remove
from templatekit.cli.groups import Noun
from templatekit.config.folders import cache_folder
from templatekit.errors import UnknownNameError
from templatekit.tokens.disk_cache import kept_files

_CACHE_DIR = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Where it is; by default TEMPLATEKIT_CACHE, or templatekit in the user's folder of caches.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SHOWN = 12
"""Characters of a key that a table shows, and that name it where no other begins so."""


class _Age(click.ParamType[float]):
    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds of `30m`, `12h`, `7d` or `2w`."""
        match = re.fullmatch(r"(\d{1,6})([mhdw])", str(value).strip())
        if match is None:
            self.fail(f"found {value!r}; expected a number of minutes, hours, days or weeks: 30m, 12h, 7d, 2w", param)
        return int(match[1]) * _SECONDS[match[2]]


@click.group(cls=Noun)
def cache() -> None:
    """What is kept of prepared data, and of tokenizers."""


@cache.command("list")
@_CACHE_DIR
@_JSON
def list_cache(cache_dir: Path | None, as_json: bool) -> None:
    """List what is kept: how much it is, what made it, when it was last used."""
    folder = cache_folder(cache_dir)
    found, tokenizers = entries(folder), kept_files(folder)
    if as_json:
        rows = [entry.as_dict() for entry in found]
        kept = {"count": len(tokenizers), "bytes": _size(tokenizers)}
        click.echo(json.dumps({"folder": str(folder), "entries": rows, "tokenizers": kept}, ensure_ascii=False))
        return
    for entry in found:
        click.echo(
            f"{entry.key[:_SHOWN]}  {in_words(entry.bytes):>8}  {entry.examples:>9,} examples  "
            f"{_age(entry.age):>4} ago  {_made_by(entry)}"
        )
    total = in_words(sum(entry.bytes for entry in found))
    click.echo(f"{len(found)} in {folder}, {total}")
    if tokenizers:
        click.echo(f"tokenizers: {len(tokenizers)}, {in_words(_size(tokenizers))}")


@cache.command("clear")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--older-than", type=_Age(), metavar="AGE", help="What was not used for so long: 30m, 12h, 7d, 2w.")
@click.option("--all", "everything", is_flag=True, help="All that is kept, tokenizers too.")
@_CACHE_DIR
@_JSON
def clear_cache(
    keys: tuple[str, ...], older_than: float | None, everything: bool, cache_dir: Path | None, as_json: bool
) -> None:
    """Remove what is kept: by key, or the beginning of one, by age, or all."""
    if sum((bool(keys), older_than is not None, everything)) != 1:
        raise click.UsageError("expected one of: keys (as `cache list` shows them), --older-than AGE, --all")
    folder = cache_folder(cache_dir)
    found = entries(folder)
    chosen = [_named(key, found) for key in dict.fromkeys(keys)] if keys else found
    if older_than is not None:
        chosen = [entry for entry in found if entry.age > older_than]
    tokenizers = kept_files(folder) if everything else []
    of_tokenizers = _size(tokenizers)
    freed = of_tokenizers + remove(chosen)
    for file in tokenizers:
        file.unlink(missing_ok=True)
    if as_json:
        removed = [entry.key for entry in chosen]
        click.echo(json.dumps({"removed": removed, "tokenizers": len(tokenizers), "bytes": freed}))
        return
    for entry in chosen:
        click.echo(f"removed {entry.key[:_SHOWN]}  {in_words(entry.bytes):>8}  {_made_by(entry)}")
    if tokenizers:
        click.echo(f"removed tokenizers: {len(tokenizers)}, {in_words(of_tokenizers)}")
    click.echo(f"removed {len(chosen)} of {len(found)}, {in_words(freed)}")


def _size(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _named(key: str, found: list[Entry]) -> Entry:
    matching = [entry for entry in found if entry.key.startswith(key)]
    if not key or len(matching) != 1:
        several = f"; {len(matching)} begin so: give more of it" if key and matching else ""
        raise UnknownNameError("kept data", key, [entry.key[:_SHOWN] for entry in found], hint=several)
    return matching[0]


def in_words(size: int) -> str:
    """A number of bytes, in units of 1,000."""
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


def _made_by(entry: Entry) -> str:
    if not entry.about:
        return "(what made it cannot be read)"
    about = entry.about
    parts = [f"{about.get('dataset')}", f"template {about.get('template')}", f"tokenizer {about.get('tokenizer')}"]
    if entry.damaged:
        parts.append(f"{entry.damaged} parts damaged")
    return ", ".join(parts)
