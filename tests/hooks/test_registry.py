"""The registry: how plugins are found, which are loaded, and what they offer."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testkit.plugins import PLAIN_TEMPLATE, Given, adapter_source, offering, reasons

import templatekit
from templatekit import (
    Adapter,
    Exporter,
    ModelResolver,
    PluginError,
    Record,
    RecordError,
    Source,
    TemplateFile,
    UnknownNameError,
    create_registry,
    render,
)
from templatekit.hooks import specs as hookspecs
from templatekit.hooks.loading import PLUGIN_DIR_VARIABLE, REQUIRES, SELECT_VARIABLE
from templatekit.hooks.offers import Offers, Plugin
from templatekit.hooks.registry import TRACE_VARIABLE

# The hooks themselves


def test_built_ins_come_through_entry_points() -> None:
    registry = create_registry()
    assert {"alpaca", "dolly", "messages", "sharegpt", "prompt-completion"} <= set(registry.adapters)
    assert {
        "alpaca", "alpaca-lora", "chapter7", "seed", "dolly", "phi3-chapter7", "chatml", "llama3",
    } <= set(registry.templates)  # fmt: skip
    assert {"jsonl", "parquet", "arrow"} <= set(registry.exporters)
    assert {"starter", "json", "arrow", "hub"} <= set(registry.sources)
    assert not registry.failures
    assert all(plugin.built_in for plugin in registry.plugins)
    owner = registry.adapters.owner("alpaca")
    assert (owner.name, owner.origin.split()[0]) == ("alpaca", "templatekit")


def test_the_factory_makes_managers_that_know_nothing_of_each_other() -> None:
    first = create_registry(plugins=[offering([Given()])])
    second = create_registry()
    assert "given" in first.adapters
    assert "given" not in second.adapters
    assert first.adapters["alpaca"] is not second.adapters["alpaca"]


def test_without_entry_points_nothing_is_loaded() -> None:
    registry = create_registry(entry_points=False)
    assert not registry.plugins
    assert not registry.adapters
    with pytest.raises(UnknownNameError, match=r"no adapter named 'alpaca'; known: none"):
        registry.adapters["alpaca"]


@pytest.mark.parametrize(
    ("hook", "attribute", "kind"),
    [
        ("templatekit_adapters", "adapters", Adapter),
        ("templatekit_templates", "templates", TemplateFile),
        ("templatekit_sources", "sources", Source),
        ("templatekit_models", "models", ModelResolver),
        ("templatekit_exporters", "exporters", Exporter),
    ],
)
def test_each_hook_is_called_once_and_its_result_is_cached(hook: str, attribute: str, kind: type[Any]) -> None:
    calls = []

    members = {"name": "mine", **dict.fromkeys(getattr(kind, "__abstractmethods__", ()))}
    mine = TemplateFile(name="mine", source="x") if kind is TemplateFile else type("Mine", (kind,), members)()

    def offer() -> Iterable[object]:
        calls.append(hook)
        yield mine

    registry = create_registry(entry_points=False, plugins=[offering(offer, hook)])
    assert not calls, "hooks are called when a value of their kind is first needed"
    offers: Offers[object] = getattr(registry, attribute)
    assert offers["mine"] is mine
    assert list(offers) == ["mine"]
    assert len(offers) == 1
    assert getattr(registry, attribute) is offers
    assert calls == [hook]


def test_every_hook_is_documented_typed_and_tested() -> None:
    specs = {name: value for name, value in vars(hookspecs).items() if name.startswith("templatekit_")}
    marks = test_each_hook_is_called_once_and_its_result_is_cached.pytestmark
    tested = {case[0] for case in marks[0].args[1]}
    assert set(specs) == tested
    for name, spec in specs.items():
        documentation = inspect.getdoc(spec) or ""
        signature = inspect.signature(spec)
        assert len(documentation) > 40, name
        assert signature.return_annotation is not signature.empty, name
        for parameter in signature.parameters.values():
            assert parameter.annotation is not parameter.empty, (name, parameter)
            assert f"`{parameter.name}`" in documentation, (name, parameter)


def test_a_hook_may_return_nothing() -> None:
    assert not create_registry(entry_points=False, plugins=[offering(None)]).adapters


def test_sources_of_plugins_are_tried_before_the_built_in_ones() -> None:
    class Mine(Source):
        name = "mine"

        def accepts(self, address: str) -> bool:
            return True

        def read(self, address: str) -> Iterator[Record]:
            yield {"instruction": "a", "output": address}

    registry = create_registry(plugins=[offering([Mine()], "templatekit_sources")])
    assert next(iter(registry.sources)) == "mine"
    rendered = next(render("starter", registry=registry))
    assert "### Response:starter" in rendered.text


# Folders of single files


def test_a_plugin_folder_offers_adapters_and_templates(folder: Callable[..., Path]) -> None:
    place = folder(fable=adapter_source())
    (place / "qa.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
    registry = create_registry(plugin_dirs=[place])
    (rendered,) = render([{"q": "why?", "a": "so"}], adapter="fable", template="qa", registry=registry)
    assert rendered.text == "Q: why?\nA: so\n"
    assert registry.adapters.owner("fable").origin == str(place / "fable.py")
    assert registry.templates.owner("qa").origin == str(place)


def test_the_folder_variable_separates_as_path_does(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = folder("first", one=adapter_source("one")), folder("second", two=adapter_source("two"))
    monkeypatch.setenv(PLUGIN_DIR_VARIABLE, f"{first}:{second}:")
    assert {"one", "two"} <= set(create_registry().adapters)


def test_a_folder_named_twice_is_read_once(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(fable=adapter_source())
    (place / "qa.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
    monkeypatch.setenv(PLUGIN_DIR_VARIABLE, str(place))
    registry = create_registry(plugin_dirs=[place, place / ".." / place.name])
    assert "fable" in registry.adapters
    assert "qa" in registry.templates


def test_folders_of_one_name_may_both_hold_templates(folder: Callable[..., Path], tmp_path: Path) -> None:
    places = [tmp_path / "a" / "plugins", tmp_path / "b" / "plugins"]
    for index, place in enumerate(places):
        place.mkdir(parents=True)
        (place / f"qa{index}.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
    assert {"qa0", "qa1"} <= set(create_registry(plugin_dirs=places).templates)


def test_hidden_and_underscored_files_are_not_plugins(folder: Callable[..., Path]) -> None:
    place = folder(fable=adapter_source(), _helper="raise SystemExit", __init__="raise SystemExit")
    (place / ".#fable.py").write_text("raise SystemExit")
    registry = create_registry(plugin_dirs=[place])
    assert not registry.failures
    assert "fable" in registry.adapters


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_a_plugin_folder_must_be_a_folder(what: str, tmp_path: Path) -> None:
    place = tmp_path / "plugins"
    if what == "a file":
        place.write_text("")
    with pytest.raises(PluginError, match=r"plugin folder .*plugins' cannot be read: .*; expected a folder"):
        create_registry(plugin_dirs=[place])


def test_a_template_file_that_is_not_utf8_is_named_and_left_out(folder: Callable[..., Path]) -> None:
    place = folder()
    (place / "latin.jinja").write_bytes("é".encode("latin-1"))
    registry = create_registry(plugin_dirs=[place])
    with pytest.raises(UnknownNameError, match=r"no template named 'latin'.*latin\.jinja' cannot be read"):
        registry.templates["latin"]
    assert "alpaca" in registry.templates


# Which installed plugins are loaded


@pytest.fixture
def two_installed(install: Callable[..., None]) -> None:
    install("kit-one", "one", adapter_source("one"))
    install("kit-two", "two", adapter_source("two"))


@pytest.mark.usefixtures("two_installed")
@pytest.mark.parametrize(
    ("value", "loaded"),
    [(None, {"one", "two"}), ("", {"one", "two"}), ("none", set()), ("one", {"one"}), (" one , two", {"one", "two"})],
)
def test_a_variable_chooses_the_installed_plugins(
    value: str | None, loaded: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv(SELECT_VARIABLE, value)
    adapters = set(create_registry().adapters)
    assert adapters & {"one", "two"} == loaded
    assert "alpaca" in adapters, "the built-in plugins are always loaded"


@pytest.mark.usefixtures("two_installed")
def test_the_keyword_has_precedence_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SELECT_VARIABLE, "none")
    assert {"two"} == set(create_registry(select=["two"]).adapters) & {"one", "two"}


@pytest.mark.usefixtures("two_installed")
def test_a_misspelt_selection_suggests_an_installed_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SELECT_VARIABLE, "onne")
    with pytest.raises(
        UnknownNameError, match=r"no installed plugin named 'onne'; did you mean 'one'\?.*TEMPLATEKIT_P"
    ):
        create_registry()


# Two with the same name


def test_two_plugins_offering_one_adapter_are_both_named(folder: Callable[..., Path]) -> None:
    place = folder(first=adapter_source("same"), second=adapter_source("same"), third=adapter_source("other"))
    adapters = create_registry(plugin_dirs=[place]).adapters
    for ask in (adapters.__getitem__, adapters.owner):
        with pytest.raises(PluginError) as raised:
            ask("same")
        assert str(raised.value) == (
            f"2 plugins offer adapter 'same': first ({place / 'first.py'}) and second ({place / 'second.py'}); "
            "choose first:same or second:same"
        )
    assert "same" not in adapters
    assert adapters["other"].name == "other", "others are not affected"


def test_a_qualified_name_chooses_between_two_with_one_name(folder: Callable[..., Path]) -> None:
    place = folder(first=adapter_source("same"), second=adapter_source("same", "record = {'q': 'second', 'a': 'a'}"))
    registry = create_registry(plugin_dirs=[place])
    assert {"first:same", "second:same"} <= set(registry.adapters)
    assert len(registry.adapters) == len(list(registry.adapters))
    record = {"q": "first", "a": "a"}
    for name in ("first", "second"):
        assert registry.adapters.owner(f"{name}:same").name == name
        (rendered,) = render([record], adapter=f"{name}:same", template="chapter7", registry=registry)
        assert name in rendered.text
    assert registry.adapters["alpaca:alpaca"] is registry.adapters["alpaca"]
    with pytest.raises(UnknownNameError, match=r"no adapter named 'third:same'; did you mean 'first:same'"):
        registry.adapters["third:same"]
    with pytest.raises(RecordError, match=r"several adapters read records with keys a, q: first:same, second:same"):
        next(render([record], template="chapter7", registry=registry))


def test_a_plugin_cannot_replace_a_built_in_adapter() -> None:
    class Alpaca(Given):
        name = "alpaca"

    registry = create_registry(plugins=[offering([Alpaca()])])
    with pytest.raises(PluginError, match=r"adapter 'alpaca': alpaca \(templatekit .*\) and offering \(given by"):
        _ = registry.adapters["alpaca"]
    assert isinstance(registry.adapters["offering:alpaca"], Alpaca)


def test_a_plugin_may_not_offer_a_name_twice() -> None:
    registry = create_registry(plugins=[offering([Given(), Given()])])
    with pytest.raises(PluginError, match=r"plugin 'offering' .* offers two adapters named 'given'"):
        _ = registry.adapters


# Versions


@pytest.mark.parametrize("wanted", [">=0.1,<1", ">0.0.1", f"=={templatekit.__version__}"])
def test_a_plugin_for_this_version_is_loaded(wanted: str, folder: Callable[..., Path]) -> None:
    place = folder(fable=f"{REQUIRES} = {wanted!r}\n{adapter_source()}")
    assert "fable" in create_registry(plugin_dirs=[place]).adapters


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (">=99", "it needs templatekit >=99; this is {version}; install a version of either that fits"),
        ("soon", "TEMPLATEKIT_REQUIRES='soon' is no version specifier; expected something like '>=0.1,<0.2'"),
        (3, "TEMPLATEKIT_REQUIRES=3 is no version specifier; expected something like '>=0.1,<0.2'"),
    ],
)
def test_a_plugin_for_another_version_is_left_out(wanted: object, reason: str, folder: Callable[..., Path]) -> None:
    registry = create_registry(plugin_dirs=[folder(fable=f"{REQUIRES} = {wanted!r}\n{adapter_source()}")])
    expected = reason.format(version=templatekit.__version__)
    assert reasons(registry) == {"fable": expected}
    with pytest.raises(UnknownNameError, match="plugin 'fable' was left out: "):
        registry.adapters["fable"]


def test_requirements_of_a_distribution_are_checked_before_its_import(
    install: Callable[..., None], tmp_path: Path
) -> None:
    for name, wanted in {"old": "templatekit<0.0.1; extra == 'x'", "new": "templatekit (>=99)"}.items():
        install(f"kit-{name}", name, adapter_source(name) if name == "old" else "raise SystemExit")
        facts = tmp_path / "site" / f"kit_{name}-1.0.dist-info" / "METADATA"
        facts.write_text(facts.read_text() + f"Requires-Dist: templatekit-else>99\nRequires-Dist: {wanted}\n")
    registry = create_registry()
    version = templatekit.__version__
    assert reasons(registry) == {
        "new": f"it needs templatekit >=99; this is {version}; install a version of either that fits"
    }
    assert "old" in registry.adapters, "requirements of an extra are ignored"


# Logging


def test_a_variable_turns_on_the_log_of_imports_and_hooks(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder(fable=adapter_source(), broken="1 / 0")
    for value, traced in [("0", False), ("1", True)]:
        monkeypatch.setenv(TRACE_VARIABLE, value)
        assert "fable" in create_registry(plugin_dirs=[place]).adapters
        lines = capsys.readouterr().err.splitlines()
        shown = [line for line in lines if "fable" in line or "broken" in line]
        patterns = [
            r"templatekit: import .*broken\.py raised \d+\.\d ms",
            r"templatekit: import .*fable\.py took \d+\.\d ms",
            r"templatekit: templatekit_adapters of fable \(.*fable\.py\) took \d+\.\d ms",
        ]
        assert len(shown) == (len(patterns) if traced else 0)
        for line, pattern in zip(shown, patterns, strict=False):
            assert re.fullmatch(pattern, line), line


# Two distributions


def test_two_distributions_with_one_entry_point_name_are_both_named(install: Callable[..., None]) -> None:
    install("kit-one", "same", adapter_source("one"))
    install("kit-two", "same", adapter_source("two"))
    with pytest.raises(
        PluginError, match=r"plugin named 'same': kit-(one|two) 1\.0 and kit-(one|two) 1\.0; uninstall one"
    ):
        create_registry()
    assert "alpaca" in create_registry(select=[]).adapters, "a selection is a way out without uninstalling"


def test_one_distribution_may_not_use_a_name_twice(install: Callable[..., None]) -> None:
    install("kit-one", "same", adapter_source("one"))
    install("kit-one", "other", adapter_source("two"))
    for entry in sys.path[0], sys.path[1]:
        points = Path(entry) / "kit_one-1.0.dist-info" / "entry_points.txt"
        if points.exists():
            points.write_text(points.read_text().replace("other =", "same ="))
    with pytest.raises(PluginError, match=r"plugin named 'same': kit-one 1\.0 and kit-one 1\.0"):
        create_registry()


def test_one_distribution_found_twice_is_not_a_duplicate(install: Callable[..., None]) -> None:
    install("kit-one", "one", adapter_source("one"), site="here")
    install("kit-one", "one", adapter_source("one"), site="there")
    assert "one" in create_registry().adapters


def test_a_distribution_without_metadata_is_loaded(install: Callable[..., None], tmp_path: Path) -> None:
    install("kit-one", "one", adapter_source("one"))
    (tmp_path / "site" / "kit_one-1.0.dist-info" / "METADATA").unlink()
    registry = create_registry()
    assert registry.adapters.owner("one").origin == "an unknown distribution"


def test_one_module_under_two_names_is_an_error() -> None:
    module = offering([Given()])
    registry = create_registry(entry_points=False, plugins=[module])
    module.__name__ = "again"

    with pytest.raises(PluginError, match=r"plugins 'offering' .* and 'again' .* are one module; keep one"):
        registry.register(Plugin(name="again", origin="here", module=module))
