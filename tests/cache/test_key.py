"""Everything that determines the samples changes the key; nothing else does."""

from __future__ import annotations

import gzip
import json
import os
import sys
import textwrap
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
from testkit.at_hand import Tokenizers

from templatekit import Adapter, DataOptions, Example, Registry, Source, create_registry
from templatekit.cache import code_hash as code
from templatekit.cache import key
from templatekit.cache.code_hash import NotCacheable
from templatekit.cache.key import cache_key, key_values
from templatekit.config.options import Options
from templatekit.pipeline.pipeline import Pipeline
from templatekit.testing.tiny_tokenizers import save_tiny_tokenizer

ROWS = [{"instruction": "a", "input": "", "output": "b"}]
PLUGIN = """
    from templatekit import Adapter, Example, hookimpl
    from house_helper import message

    class House(Adapter):
        name = "house"
        required = keys = ("instruction", "output")

        def to_example(self, record):
            return Example(messages=(message("user", record["instruction"]), message("assistant", record["output"])))

    @hookimpl
    def templatekit_adapters():
        return [House()]
"""
HELPER = """
    from templatekit import Message

    def message(role, content):
        return Message(role=role, content=content)
"""


class Setting:
    """The files of one run: data, plugin, template, tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = self.write("data.json", json.dumps(ROWS))
        self.template = self.write("mine.jinja", "{#- kind: instruction -#}\nQ: {{ instruction }}\nA: {{ response }}")
        self.plugin = self.write("plugins/house.py", textwrap.dedent(PLUGIN))
        self.helper = self.write("house_helper.py", textwrap.dedent(HELPER))
        self.tokenizer = save_tiny_tokenizer("nfc", folder / "tokenizer")

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def key(self, **options: Any) -> str:
        """The key that another process would compute: plugins are loaded again."""
        for name in [name for name in sys.modules if "house" in name]:
            del sys.modules[name]
        sys.path.insert(0, str(self.folder))
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            registry = create_registry(plugin_dirs=[self.plugin.parent])
            values = {"dataset": self.data, "template": self.template, "tokenizer": self.tokenizer, "adapter": "house"}
            values = {name: str(value) for name, value in values.items()}
            return cache_key(key_values(Pipeline(DataOptions.parse(values | options), registry)))
        finally:
            sys.path.remove(str(self.folder))
            sys.dont_write_bytecode = before


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def change(path: Path, before: str, after: str) -> None:
    """Write another text of the same length, and restore the file's times."""
    assert len(before) == len(after)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")
    os.utime(path, ns=times)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


CHANGES: dict[str, Callable[[Setting], object]] = {
    "data": lambda s: change(s.data, '"b"', '"c"'),
    "template": lambda s: change(s.template, "Q:", "P:"),
    "plugin": lambda s: change(s.plugin, 'record["output"]', "str('output!!') "),
    "a module that the plugin uses": lambda s: change(s.helper, "content=content", "content=role   "),
    "tokenizer": lambda s: append(s.tokenizer / "tokenizer.json", " "),
    "tokenizer's configuration": lambda s: (s.tokenizer / "tokenizer_config.json").write_text("{}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_content_is_another_key(setting: Setting, what: str) -> None:
    before = setting.key()
    CHANGES[what](setting)
    assert setting.key() != before


def test_what_changes_nothing_leaves_the_key(setting: Setting, tmp_path: Path) -> None:
    before = setting.key()
    assert setting.key() == before
    os.utime(setting.data, (1, 1))
    assert setting.key() == before
    setting.tokenizer.rename(tmp_path / "elsewhere")
    setting.tokenizer = tmp_path / "elsewhere"
    assert setting.key() == before
    assert setting.key(cache=True, cache_dir=str(tmp_path)) == before


OTHERWISE: dict[str, Any] = {
    "columns": {"instruction": "prompt"},
    "empty_context": ("<noinput>",),
    "train_on": "all",
    "end_marker": "none",
    "control_tokens": "everywhere",
    "boundary": "joint",
    "reuse": False,
    "max_length": 99,
    "truncation": "turns",
    "limit": 1,
    "filter": ("len(output) > 0",),
    "dedup": "exact",
    "shuffle": 1,
    "shuffle_buffer": 7,
    "max_record_size": 17,
    "on_error": "skip",
    "on_missing_field": "drop",
    "empty_thought": "omit",
    "encoder": "tokenizers",
}
OWN_TESTS = {"dataset", "chat_template_kwargs", "mix", "mix_strategy"}
FIELDS = sorted(set(DataOptions.model_fields) - key.BY_CONTENT - key.WITHOUT_EFFECT - OWN_TESTS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_is_part_of_the_key(setting: Setting, name: str) -> None:
    beside = {"max_length": 50} if name == "truncation" else {}
    assert setting.key(**beside) != setting.key(**beside, **{name: OTHERWISE[name]})


def test_values_for_the_template_are_part_of_the_key(setting: Setting) -> None:
    setting.template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}{{ thinking }}", encoding="utf-8")
    keys = {setting.key(chat_template_kwargs={"thinking": value}) for value in ("a", "b", True)}
    assert len(keys) == 3


def test_an_option_that_is_new_is_part_of_the_key(setting: Setting) -> None:
    """All options but the listed ones are part of the key, so that none is forgotten."""

    class Later(DataOptions):
        lately: int = 0

    options = [Later.parse({"lately": value}) for value in (0, 1)]
    assert key._options(options[0]) == key._options(options[1]), "a run's own options are no part of the data"
    assert issubclass(Later, Options)
    assert not {"cache", "cache_dir"} & set(FIELDS)
    assert set(key._options(DataOptions())) == set(DataOptions.model_fields) - key.BY_CONTENT - key.WITHOUT_EFFECT


def test_the_packages_own_code_is_part_of_the_key(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setting.key()
    monkeypatch.setattr(key, "own_code", lambda: "0.1.0 another")
    assert setting.key() != before
    monkeypatch.undo()
    monkeypatch.setattr(key, "libraries", lambda: {"tokenizers": "99"})
    assert setting.key() != before
    monkeypatch.undo()
    monkeypatch.setattr(key, "FORMAT", 99)
    assert setting.key() != before


def test_rooms_that_make_no_samples_are_rooms() -> None:
    """The list must name neither a room that was renamed, nor a room that makes samples."""
    rooms = {path.name for path in Path(code.__file__).parents[1].iterdir() if (path / "__init__.py").is_file()}
    assert set(code.MAKE_NO_SAMPLES) < rooms
    made_by = {"config", "hooks", "sources", "formats", "tokens", "packing", "pipeline"}
    assert made_by < rooms - set(code.MAKE_NO_SAMPLES)


def test_own_code_notices_a_changed_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A changed module counts in a room that makes samples, but not in `cli`."""
    import templatekit

    for name in ("__init__.py", "pipeline.py", "cli/render.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(templatekit, "__file__", str(tmp_path / "__init__.py"))
    found = []
    for name in ("__init__.py", "pipeline.py", "cli/render.py"):
        (tmp_path / name).write_text("a = 2\n")
        code.own_code.cache_clear()
        found.append(code.own_code())
    code.own_code.cache_clear()
    assert found[0] != found[1]
    assert found[1] == found[2]


def test_a_key_that_ignores_something_is_caught(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: with values of the key left out, the changes above pass unnoticed."""
    for part, change_it in (("_data", "data"), ("_template", "template"), ("_adapter", "plugin")):
        with monkeypatch.context() as patch:
            patch.setattr(key, part, lambda *given: None)
            before = setting.key()
            CHANGES[change_it](setting)
            assert setting.key() == before


def test_adapters_told_by_keys_all_count(setting: Setting) -> None:
    options = {"adapter": None}
    before = setting.key(**options)
    CHANGES["plugin"](setting)
    assert setting.key(**options) != before


def test_a_pattern_counts_by_what_it_names_now(tmp_path: Path, builtin: Registry, tokenizer_of: Tokenizers) -> None:
    (tmp_path / "a.csv").write_text("instruction,input,output\na,,b\n")

    def found() -> str:
        pipeline = Pipeline(DataOptions(dataset=str(tmp_path / "*.csv")), builtin, tokenizer=tokenizer_of("nfc"))
        return cache_key(key_values(pipeline))

    before = found()
    assert found() == before
    (tmp_path / "b.csv").write_text("instruction,input,output\na,,b\n")
    assert found() != before


def test_folders_count_by_names_and_contents(tmp_path: Path, builtin: Registry, tokenizer_of: Tokenizers) -> None:
    folder = tmp_path / "data"
    folder.mkdir()

    def found() -> str:
        pipeline = Pipeline(DataOptions(dataset=str(folder)), builtin, tokenizer=tokenizer_of("nfc"))
        return cache_key(key_values(pipeline))

    (folder / "a.jsonl").write_text(json.dumps(ROWS[0]))
    keys = [found()]
    (folder / "README.md").write_text("no data")
    assert found() == keys[0]
    (folder / "b.jsonl").write_text(json.dumps(ROWS[0]))
    keys.append(found())
    (folder / "b.jsonl").rename(folder / "0.jsonl")
    keys.append(found())
    (folder / "0.jsonl").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    keys.append(found())
    assert len(set(keys)) == 4


class Counting(Adapter):
    """An adapter with an attribute."""

    name = "counting"
    keys = required = ("instruction", "output")

    def __init__(self, times: object) -> None:
        self.times = times

    def to_example(self, record: Any) -> Example:
        raise NotImplementedError


def test_an_adapter_object_counts_with_its_state(builtin: Registry, tokenizer_of: Tokenizers) -> None:
    def found(times: object) -> str:
        pipeline = Pipeline(DataOptions(), builtin, adapter=Counting(times), tokenizer=tokenizer_of("nfc"))
        return cache_key(key_values(pipeline))

    assert found(1) == found(1)
    assert found(1) != found(2)
    with pytest.raises(NotCacheable, match="attributes that are not plain values"):
        found(object())


def test_code_without_a_file_is_not_cached(builtin: Registry, tokenizer_of: Tokenizers) -> None:
    """This is code of a notebook, or code made by exec."""
    for home, said in {"typed_in": "lies in no file", "nowhere": "not loaded"}.items():
        if home == "typed_in":
            sys.modules[home] = ModuleType(home)
        made = type("Typed", (Counting,), {"name": "typed", "__module__": home})
        with pytest.raises(NotCacheable, match=said):
            key_values(Pipeline(DataOptions(), builtin, adapter=made(1), tokenizer=tokenizer_of("nfc")))
        sys.modules.pop("typed_in", None)


D = TypeVar("D", bound=date)
CLOCKS = {
    "{{ strftime_now('%d %B %Y') }}": True,
    '{% if true %}{{ strftime_now( "%-d %b" ) }}{% endif %}': True,
    "{{ strftime_now('%H:%M') }}": False,
    "{% set f = '%H' %}{{ strftime_now(f) }}": False,
    "{{ strftime_now('%d') }}{{ strftime_now('%c') }}": False,
}


@pytest.mark.parametrize("text", CLOCKS)
def test_a_template_that_prints_the_day_is_cached_for_a_day(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not CLOCKS[text]:
        with pytest.raises(NotCacheable, match="prints the time"):
            key._today(text)
        return

    class Tomorrow(date):
        @classmethod
        def today(cls: type[D]) -> D:
            return cls(2020, 2, 28) + timedelta(days=1)

    before = key._today(text)
    monkeypatch.setattr(key, "date", Tomorrow)
    assert (before, key._today(text)) == (date.today().isoformat(), "2020-02-29")


class Elsewhere(Source):
    """A source that does not name its files."""

    name = "elsewhere"

    def accepts(self, address: str) -> bool:
        return address == "elsewhere"

    def read(self, address: str) -> Any:
        yield from ROWS


def test_sources_without_files_are_not_cached(tmp_path: Path, tokenizer_of: Tokenizers) -> None:
    (tmp_path / "place.py").write_text(
        "from templatekit import Source, hookimpl\n"
        "class Place(Source):\n    name = 'place'\n"
        "    def accepts(self, address): return address == 'there'\n"
        "    def read(self, address): return iter([])\n"
        "@hookimpl\ndef templatekit_sources(): return [Place()]\n"
    )
    registry = create_registry(plugin_dirs=[tmp_path])
    assert Elsewhere().files("elsewhere") is None
    for dataset, said in {
        "-": "source 'stdin'",
        "memory://a.jsonl": "source 'remote'",
        "there": "source 'place'",
        "somebody/set": "source 'hub'",
    }.items():
        with pytest.raises(NotCacheable, match=said):
            key_values(Pipeline(DataOptions(dataset=dataset), registry, tokenizer=tokenizer_of("nfc")))
    with pytest.raises(NotCacheable, match="without a tokenizer"):
        key_values(Pipeline(DataOptions(), registry))
