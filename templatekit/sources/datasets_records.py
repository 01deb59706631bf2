"""Reads data sets of the `datasets` library: folders made by `save_to_disk`, and data sets on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from templatekit.errors import RecordError, SourceError, nearest, shorten
from templatekit.hooks.contracts import Source
from templatekit.sources.files import exists, is_folder, require_records, to_path
from templatekit.types import Record

_MARKERS = ("dataset_dict.json", "state.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[^/:]+)?")
_BATCH_ROWS = 512
_SECONDS = 5.0


class SavedSource(Source):
    """A folder made by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`, as `FOLDER` or `FOLDER:SPLIT`."""

    name: ClassVar[str] = "saved"
    description: ClassVar[str] = "A folder made by datasets' save_to_disk; FOLDER:SPLIT where it has several splits."

    def accepts(self, address: str) -> bool:
        """Whether the folder has the files that `save_to_disk` writes."""
        return is_saved(_folder_and_split(address)[0])

    def files(self, address: str) -> list[Path]:
        """All files in the folder, sorted by name."""
        folder, _ = _folder_and_split(address)
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def read(self, address: str) -> Iterator[Record | RecordError]:
        """The rows, memory-mapped, as Python values, whatever format was set when they were saved."""
        import datasets

        folder, split = _folder_and_split(address)
        try:
            saved = datasets.load_from_disk(str(folder))
            if isinstance(saved, datasets.Dataset):
                saved = {str(saved.split) if saved.split else "all": saved}
            rows = (
                dict(zip(batch, row, strict=True))
                for batch in _valid_batches(_pick(saved, split, address))
                for row in zip(*batch.values(), strict=True)
            )
            yield from require_records(rows, address)
        except SourceError:
            raise
        except Exception as error:  # json, pyarrow, datasets and the columns' decoders each have their own
            raise SourceError(
                f"{address}: damaged or empty folder; found {type(error).__name__}: {shorten(str(error), 200)}; "
                "expected what save_to_disk wrote; save it again"
            ) from error


def _valid_batches(saved: Any) -> Iterator[Mapping[str, Any]]:
    """The rows in batches, decoded; Arrow checks each first, since an offset out of bounds would crash the process."""
    plain, arrow = saved.with_format(None), saved.with_format("arrow")
    for start in range(0, len(saved), _BATCH_ROWS):
        rows = range(start, min(start + _BATCH_ROWS, len(saved)))
        arrow[rows].validate(full=True)
        yield plain[rows]


class HubSource(Source):
    """A data set on the Hugging Face hub, as `ORGANISATION/NAME` or `ORGANISATION/NAME:SPLIT`.

    `datasets` reads these, and infers the types of data published as JSON or CSV.
    """

    name: ClassVar[str] = "hub"
    description: ClassVar[str] = "A data set on the Hugging Face hub, streamed: ORGANISATION/NAME or …:SPLIT."

    def accepts(self, address: str) -> bool:
        """Whether the address looks like a hub name and its first part is not a local folder."""
        return bool(_HUB_NAME.fullmatch(address)) and not exists(Path(address.partition("/")[0]))

    def read(self, address: str) -> Iterator[Record | RecordError]:
        """The rows, streamed: only the rows that are read are downloaded."""
        name, _, split = address.partition(":")
        _check_reachable(address)
        import datasets

        try:
            # Releases before 4 would ask on standard input whether to run a data set's own Python.
            streams = datasets.load_dataset(name, streaming=True, trust_remote_code=False)
            yield from require_records(_pick(streams, split, address), address)
        except SourceError:
            raise
        except Exception as error:  # the hub, every file format, and at any row the network have their own
            raise SourceError(
                f"{address}: no such file here, and not readable from the Hugging Face hub; found "
                f"{type(error).__name__}: {shorten(str(error), 200)}; check the name and the network, or download it "
                "and give the folder"
            ) from error


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` made this folder."""
    return is_folder(folder) and any(exists(folder / marker) for marker in _MARKERS)


def _folder_and_split(address: str) -> tuple[Path, str]:
    folder, _, split = address.rpartition(":")
    if not folder or exists(to_path(address)):
        return to_path(address), ""
    return to_path(folder), split


def _pick(splits: Mapping[str, Any], wanted: str, address: str) -> Any:
    if wanted in splits:
        return splits[wanted]
    names = [str(name) for name in splits]
    if wanted:
        raise SourceError(f"{address}: no split named {wanted!r}; {nearest(wanted, names)}")
    if len(names) != 1:
        raise SourceError(
            f"{address}: several splits, {', '.join(names) or 'none'}; expected one to be named: {address}:"
            f"{names[0] if names else 'train'}"
        )
    return splits[names[0]]


def _check_reachable(address: str) -> None:
    """Try to connect to the hub once: its client retries for 23 seconds before it gives up."""
    import socket
    import urllib.parse
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    hub = urllib.parse.urlsplit(constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((hub.hostname or "", port), timeout=_SECONDS).close()
    except OSError as error:
        raise SourceError(
            f"{address}: no such file here, and the Hugging Face hub cannot be reached; found {error}; give a local "
            "file or folder, or set HF_HUB_OFFLINE=1 to read what was downloaded before"
        ) from error
