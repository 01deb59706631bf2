"""A plugin that breaks its contract is reported, and the other plugins keep working."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testkit.plugins import PLAIN_TEMPLATE, Given, adapter_source, offering, reasons

from templatekit import (
    Adapter,
    Exporter,
    ModelResolver,
    PluginError,
    RecordError,
    Source,
    TemplateFile,
    UnknownNameError,
    create_registry,
    hookimpl,
    render,
)

# Hooks that are never called


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
        (Given, "expected a list of Adapter objects; return instances: \\[Given\\(\\)\\]"),
        ({"given": Given()}, "returned {'given': .*; expected a list of Adapter objects"),
        ("given", "returned 'given'; expected a list of Adapter objects"),
        ([Given(), None], "returned None; expected a list of Adapter objects"),
        (7, "returned 7; expected a list of Adapter objects"),
        ([Nameless()], "returned Nameless with name=None; expected a non-empty text"),
        ([ForgottenComma()], "'given' has keys='q'; expected a tuple of texts"),
    ],
)
def test_a_hook_that_returns_something_else_is_named(items: object, message: str) -> None:
    registry = create_registry(entry_points=False, plugins=[offering(items)])
    with pytest.raises(PluginError, match=f"plugin 'offering' .*: templatekit_adapters.*{message}"):
        _ = registry.adapters


class Listed(Given):
    """An adapter that can be gone through, as a list can."""

    def __iter__(self) -> Iterator[Any]:
        return iter([Given()])


class GivenSource(Source):
    name = "given"

    def accepts(self, address: str) -> bool:
        return False

    def read(self, address: str) -> Iterator[Any]:
        return iter(())


class GivenModels(ModelResolver):
    name = "given"

    def resolve(self, name: str) -> Path | None:
        return None


class GivenExporter(Exporter):
    name = "given"

    def write(self, examples: Iterable[Any], file: Any) -> int:
        return 0


ONE_OF_EACH = {
    "adapters": Given(),
    "templates": TemplateFile(name="given", source=PLAIN_TEMPLATE),
    "sources": GivenSource(),
    "models": GivenModels(),
    "exporters": GivenExporter(),
}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_single_object_is_no_list(kind: str) -> None:
    """Whatever the hook offers, the error names the plugin and the hook; in a list the same object is accepted."""
    hook = f"templatekit_{kind}"
    for single in (ONE_OF_EACH[kind], lambda: ONE_OF_EACH[kind]):
        registry = create_registry(entry_points=False, plugins=[offering(single, hook)])
        with pytest.raises(
            PluginError, match=rf"plugin 'offering' .*: {hook} returned .*; return a list, even of one$"
        ):
            getattr(registry, kind)
    registry = create_registry(entry_points=False, plugins=[offering([ONE_OF_EACH[kind]], hook)])
    assert list(getattr(registry, kind)) == ["given"]


def test_an_adapter_that_can_be_iterated_is_one_adapter() -> None:
    registry = create_registry(entry_points=False, plugins=[offering(Listed())])
    with pytest.raises(PluginError, match="return a list, even of one"):
        _ = registry.adapters


# Plugins that fail: the others keep working


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
    assert "own" in registry.templates, "its other hooks still work"
    said = "SystemExit: 0" if how == "exit" else "ValueError: no licence"
    assert reasons(registry) == {"offering": f"templatekit_adapters raised {said}"}


def templates_of_its_own() -> list[TemplateFile]:
    return [TemplateFile(name="own", source=PLAIN_TEMPLATE)]


templates_of_its_own.__name__ = "templatekit_templates"


def test_output_of_plugins_goes_to_stderr(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = "print('imported')\n" + adapter_source().replace(
        "    return [Fable()]", "    print('asked')\n    return [Fable()]"
    )
    _ = create_registry(plugin_dirs=[folder(fable=source)]).adapters
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "imported\nasked\n"


# Adapters that break their contract, in the pipeline


def rendered_with(body: str, folder: Callable[..., Path], records: list[dict[str, Any]], **options: Any) -> list[Any]:
    registry = create_registry(plugin_dirs=[folder(fable=adapter_source(body=body))])
    return list(render(records, adapter="fable", registry=registry, **options))


def test_a_plugin_may_change_its_copy_of_the_record(folder: Callable[..., Path]) -> None:
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
