"""Plugins: how they are found, what they may offer, and what becomes of those that break their contract."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import templatekit
from templatekit import (
    Adapter,
    Example,
    Exporter,
    Message,
    ModelResolver,
    PluginError,
    Record,
    RecordError,
    Registry,
    Source,
    TemplateFile,
    UnknownNameError,
    create_registry,
    hookimpl,
    hookspecs,
    render,
)
from templatekit.offers import Offers, Plugin
from templatekit.registry import PLUGIN_DIR_VARIABLE, REQUIRES, SELECT_VARIABLE, TRACE_VARIABLE

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


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PLUGIN_DIR_VARIABLE, raising=False)
    monkeypatch.delenv(SELECT_VARIABLE, raising=False)


def adapter_source(name: str = "fable", body: str = "pass") -> str:
    return ADAPTER.format(name=name, body=body)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a plugin folder: `folder(oasst=source)` makes `oasst.py` in it."""

    def write(name: str = "plugins", **sources: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        for stem, source in sources.items():
            (place / f"{stem}.py").write_text(source, encoding="utf-8")
        return place

    return write


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Callable[..., None]]:
    """Puts a distribution on `sys.path` as pip would leave it, with one plugin module."""
    modules: list[str] = []

    def write(distribution: str, entry: str, source: str, *, version: str = "1.0", site: str = "site") -> None:
        module = f"{distribution}_{entry}_module".replace("-", "_")
        modules.append(module)
        place = tmp_path / site
        facts = place / f"{distribution.replace('-', '_')}-{version}.dist-info"
        facts.mkdir(parents=True, exist_ok=True)
        (place / f"{module}.py").write_text(source, encoding="utf-8")
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        points = facts / "entry_points.txt"
        before = points.read_text() if points.exists() else "[templatekit]\n"
        points.write_text(f"{before}{entry} = {module}\n")
        monkeypatch.syspath_prepend(str(place))

    yield write
    for module in modules:
        sys.modules.pop(module, None)


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
def test_each_hook_is_called_once_and_its_offers_are_kept(hook: str, attribute: str, kind: type[Any]) -> None:
    calls = []

    whole = {"name": "mine", **dict.fromkeys(getattr(kind, "__abstractmethods__", ()))}
    mine = TemplateFile(name="mine", source="x") if kind is TemplateFile else type("Mine", (kind,), whole)()

    def offer() -> Iterable[object]:
        calls.append(hook)
        yield mine

    registry = create_registry(entry_points=False, plugins=[offering(offer, hook)])
    assert not calls, "hooks are called when something of their kind is first needed"
    offers: Offers[object] = getattr(registry, attribute)
    assert offers["mine"] is mine
    assert list(offers) == ["mine"]
    assert len(offers) == 1
    assert getattr(registry, attribute) is offers
    assert calls == [hook]


def test_every_hook_is_documented_typed_and_tested() -> None:
    specs = {name: value for name, value in vars(hookspecs).items() if name.startswith("templatekit_")}
    marks = test_each_hook_is_called_once_and_its_offers_are_kept.pytestmark
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


def test_sources_of_plugins_are_asked_before_the_built_in_ones() -> None:
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


def test_the_folder_variable_is_parted_as_path_is(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_hidden_and_underscored_files_are_no_plugins(folder: Callable[..., Path]) -> None:
    place = folder(fable=adapter_source(), _helper="raise SystemExit", __init__="raise SystemExit")
    (place / ".#fable.py").write_text("raise SystemExit")
    registry = create_registry(plugin_dirs=[place])
    assert not registry.failures
    assert "fable" in registry.adapters


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_a_plugin_folder_must_be_one(what: str, tmp_path: Path) -> None:
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
    assert "alpaca" in adapters, "the built-ins are always there"


@pytest.mark.usefixtures("two_installed")
def test_the_keyword_goes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SELECT_VARIABLE, "none")
    assert {"two"} == set(create_registry(select=["two"]).adapters) & {"one", "two"}


@pytest.mark.usefixtures("two_installed")
def test_a_misspelt_choice_is_answered_with_the_nearest_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SELECT_VARIABLE, "onne")
    with pytest.raises(
        UnknownNameError, match=r"no installed plugin named 'onne'; did you mean 'one'\?.*TEMPLATEKIT_P"
    ):
        create_registry()


# Two of one name


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
    assert adapters["other"].name == "other", "nobody else is harmed"


def test_a_plugins_name_chooses_between_two_of_one_name(folder: Callable[..., Path]) -> None:
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


def test_a_plugin_cannot_take_a_built_in_name() -> None:
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


def test_what_a_distribution_requires_is_checked_before_its_import(
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
    assert "old" in registry.adapters, "what an extra asks for is not asked of all"


# Seeing what happens


def test_hooks_are_traced_where_asked(
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
    assert "alpaca" in create_registry(select=[]).adapters, "there is a way on without uninstalling"


def test_one_distribution_may_not_use_a_name_twice(install: Callable[..., None]) -> None:
    install("kit-one", "same", adapter_source("one"))
    install("kit-one", "other", adapter_source("two"))
    for entry in sys.path[0], sys.path[1]:
        points = Path(entry) / "kit_one-1.0.dist-info" / "entry_points.txt"
        if points.exists():
            points.write_text(points.read_text().replace("other =", "same ="))
    with pytest.raises(PluginError, match=r"plugin named 'same': kit-one 1\.0 and kit-one 1\.0"):
        create_registry()


def test_one_distribution_seen_twice_is_no_duplicate(install: Callable[..., None]) -> None:
    install("kit-one", "one", adapter_source("one"), site="here")
    install("kit-one", "one", adapter_source("one"), site="there")
    assert "one" in create_registry().adapters


def test_a_distribution_without_metadata_still_has_its_say(install: Callable[..., None], tmp_path: Path) -> None:
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


# Hooks that no host would call


def broken_hook(folder: Callable[..., Path], source: str) -> str:
    place = folder(broken=f"from templatekit import hookimpl\n{source}\n")
    with pytest.raises(PluginError) as raised:
        create_registry(plugin_dirs=[place])
    message = str(raised.value)
    assert message.startswith(f"plugin 'broken' ({place / 'broken.py'}): ")
    assert "\n" not in message
    return message.partition("): ")[2]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "@hookimpl\ndef templatekit_adapter(): return []",
            "there is no hook 'templatekit_adapter'; did you mean 'templatekit_adapters'?",
        ),
        (
            "def templatekit_tempaltes(): return []",
            "there is no hook 'templatekit_tempaltes'; did you mean 'templatekit_templates'",
        ),
        ("@hookimpl\ndef adapters(): return []", "there is no hook 'adapters'; did you mean 'templatekit_adapters'"),
        (
            "def templatekit_adapters(): return []",
            "templatekit_adapters is not marked as a hook; put @templatekit.hookimpl above it",
        ),
        (
            "@hookimpl\ndef templatekit_adapters(registry): return []",
            "templatekit_adapters takes 'registry'; expected def templatekit_adapters()",
        ),
        (
            "@hookimpl(specname='templatekit_adapterz')\ndef mine(): return []",
            "there is no hook 'templatekit_adapterz'; did you mean 'templatekit_adapters'",
        ),
    ],
)
def test_hooks_that_would_not_be_called_are_errors(folder: Callable[..., Path], source: str, message: str) -> None:
    assert broken_hook(folder, source).startswith(message)


def test_a_hook_may_have_another_name_and_arguments_with_defaults(folder: Callable[..., Path]) -> None:
    source = adapter_source().replace(
        "@hookimpl\ndef templatekit_adapters():", "@hookimpl(specname='templatekit_adapters')\ndef mine(extra=1):"
    )
    assert "fable" in create_registry(plugin_dirs=[folder(fable=source)]).adapters


# Wrong values


class Nameless(Given):
    name = None  # type: ignore[assignment]


class ForgottenComma(Given):
    keys = "q"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([Given], "expected a list of Adapter objects; return instances: \\[Given\\(\\)\\]"),
        (Given(), None),
        (Given, "expected a list of Adapter objects; return instances: \\[Given\\(\\)\\]"),
        ({"given": Given()}, "returned {'given': .*; expected a list of Adapter objects"),
        ("given", "returned 'given'; expected a list of Adapter objects"),
        ([Given(), None], "returned None; expected a list of Adapter objects"),
        (7, "returned 7; expected a list of Adapter objects"),
        ([Nameless()], "returned Nameless with name=None; expected a non-empty text"),
        ([ForgottenComma()], "'given' has keys='q'; expected a tuple of texts"),
    ],
)
def test_a_hook_that_returns_something_else_is_named(items: object, message: str | None) -> None:
    registry = create_registry(entry_points=False, plugins=[offering(items)])
    if message is None:  # a single object is understood
        assert "given" in registry.adapters
        return
    with pytest.raises(PluginError, match=f"plugin 'offering' .*: templatekit_adapters.*{message}"):
        _ = registry.adapters


# Plugins that fail: the others go on


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys; sys.exit(3)", "importing it raised SystemExit: 3"),
        ("raise SystemExit", "importing it raised SystemExit"),
        ("def (", "importing it raised SyntaxError: invalid syntax (broken.py, line 1)"),
        ("import no_such_thing", "importing it raised ModuleNotFoundError: No module named 'no_such_thing'"),
        ("raise ValueError('one\\n  two')", "importing it raised ValueError: one two"),
        ("1 / 0", "importing it raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_does_not_import_is_left_out(folder: Callable[..., Path], source: str, reason: str) -> None:
    place = folder(broken=source, fable=adapter_source())
    registry = create_registry(plugin_dirs=[place])
    assert reasons(registry) == {"broken": reason}
    assert registry.failures[0].origin == str(place / "broken.py")
    assert {"fable", "alpaca"} <= set(registry.adapters)
    with pytest.raises(UnknownNameError) as raised:
        registry.adapters["lost"]
    assert str(raised.value).endswith(f"; plugin 'broken' was left out: {reason}")


def test_an_installed_plugin_that_does_not_import_is_left_out(install: Callable[..., None]) -> None:
    install("kit-one", "one", "import no_such_thing")
    install("kit-two", "two", adapter_source("two"))
    registry = create_registry()
    assert reasons(registry) == {
        "one": "importing kit_one_one_module raised ModuleNotFoundError: No module named 'no_such_thing'"
    }
    assert "two" in registry.adapters


@pytest.mark.parametrize("how", ["raise", "exit", "in the middle"])
def test_a_hook_that_raises_leaves_out_what_it_offers(how: str) -> None:
    def offer() -> Iterable[Adapter]:
        if how == "raise":
            raise ValueError("no licence")
        if how == "exit":
            sys.exit(0)
        yield Given()
        raise ValueError("no licence")

    plugin = offering(offer)
    vars(plugin)["templatekit_templates"] = hookimpl(templates_of_its_own)
    registry = create_registry(plugins=[plugin])
    assert "alpaca" in registry.adapters
    assert "given" not in registry.adapters
    assert "own" in registry.templates, "its other hooks go on"
    said = "SystemExit: 0" if how == "exit" else "ValueError: no licence"
    assert reasons(registry) == {"offering": f"templatekit_adapters raised {said}"}


def templates_of_its_own() -> list[TemplateFile]:
    return [TemplateFile(name="own", source=PLAIN_TEMPLATE)]


templates_of_its_own.__name__ = "templatekit_templates"


def test_what_plugins_print_goes_to_stderr(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = "print('imported')\n" + adapter_source().replace(
        "    return [Fable()]", "    print('asked')\n    return [Fable()]"
    )
    _ = create_registry(plugin_dirs=[folder(fable=source)]).adapters
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "imported\nasked\n"


# Adapters that break their contract, seen by the pipeline


def rendered_with(body: str, folder: Callable[..., Path], records: list[dict[str, Any]], **options: Any) -> list[Any]:
    registry = create_registry(plugin_dirs=[folder(fable=adapter_source(body=body))])
    return list(render(records, adapter="fable", registry=registry, **options))


def test_a_plugin_may_do_what_it_likes_to_its_record(folder: Callable[..., Path]) -> None:
    records = [{"q": "1", "a": "2", "deep": {"list": [1, {"x": 1}]}} for _ in range(3)]
    body = "record['q'] += '!'; record['deep']['list'][1].clear(); record['deep']['list'].pop(); del record['deep']"
    texts = [item.text for item in rendered_with(body, folder, records, template="alpaca-lora")]
    assert records == [{"q": "1", "a": "2", "deep": {"list": [1, {"x": 1}]}} for _ in range(3)]
    assert all("1!" in text and "1!!" not in text for text in texts)
    assert texts == [item.text for item in rendered_with(body, folder, records, template="alpaca-lora")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('boom')", "adapter 'fable' raised KeyError: 'boom'"),
        ("import sys; sys.exit(0)", "adapter 'fable' raised SystemExit: 0"),
        ("return None", "adapter 'fable' returned None; expected an Example"),
        ("return {'messages': []}", "adapter 'fable' returned {'messages': []}; expected an Example"),
        (
            "return Example(messages=({'role': 'user'},))",
            "adapter 'fable' returned messages[0]={'role': 'user'}; expected a",
        ),
        (
            "return Example(messages=(Message(role='user', content=5),))",
            "adapter 'fable' returned messages[0].content=5; expected text",
        ),
        (
            "return Example(messages=(Message(role='user', content='a'), Message(role='assistant', content=None)))",
            "adapter 'fable' returned messages[1].content=None; expected text",
        ),
        ("return Example(messages=())", "adapter 'fable' raised ValueError: an example needs at least one message"),
    ],
)
def test_an_adapter_that_fails_names_itself_and_its_row(folder: Callable[..., Path], body: str, message: str) -> None:
    good = {"q": "1", "a": "2"}
    guarded = f"if record['q'] == 'bad':\n            {body}"
    with pytest.raises(RecordError) as raised:
        rendered_with(guarded, folder, [good, {"q": "bad", "a": "2"}])
    assert str(raised.value).startswith(f"1: {message}")
    assert raised.value.reason == "adapter_failed"
    assert len(rendered_with(guarded, folder, [good, {"q": "bad", "a": "2"}, good], on_error="skip")) == 2


def test_an_adapter_that_raises_while_it_is_chosen_is_an_error(folder: Callable[..., Path]) -> None:
    source = adapter_source().replace("def to_example", "def matches(self, keys):\n        1 / 0\n\n    def to_example")
    registry = create_registry(plugin_dirs=[folder(fable=source)])
    with pytest.raises(PluginError, match=r"matches\(\) raised ZeroDivisionError.*--adapter"):
        list(render([{"q": "1", "a": "2"}], registry=registry))
