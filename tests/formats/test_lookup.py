"""Templates by name, by path, and the tokenizer's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from templatekit import Registry, TemplateError, UnknownNameError
from templatekit.formats.lookup import find_template


def test_by_name_and_by_path(builtin: Registry, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ instruction }}{{ response }}", encoding="utf-8")
    assert find_template("alpaca", builtin).name == "alpaca"
    assert find_template(str(path), builtin).name == "mine"
    other = tmp_path / "mine.txt"
    other.write_text("{{ instruction }}: {{ response }}", encoding="utf-8")
    assert find_template(str(other), builtin).name == "mine"


def test_a_name_goes_before_a_file_of_that_name(
    builtin: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chatml").write_text("something else", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert find_template("chatml", builtin).kind == "chat"


def test_the_tokenizers_own(builtin: Registry) -> None:
    source = "{{ enable_thinking }}{% for m in messages %}{{ m.content }}{% endfor %}"
    template = find_template("tokenizer", builtin, chat_template=source)
    assert (template.name, template.kind) == ("tokenizer", "chat")
    with pytest.raises(TemplateError, match="this tokenizer has none; choose one of alpaca, alpaca-lora, chapter7"):
        find_template("tokenizer", builtin)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("alpacca", "no template named 'alpacca'; did you mean 'alpaca' or 'alpaca-lora'?"),
        ("x" * 5_000, "no template named 'xxx"),
        ("", "no template named ''"),
    ],
)
def test_unknown_names(address: str, words: str, builtin: Registry) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_template(address, builtin)
    assert words in str(caught.value)


def test_a_path_that_is_not_there(builtin: Registry) -> None:
    with pytest.raises(TemplateError, match=r"template file 'none\.jinja' cannot be read"):
        find_template("none.jinja", builtin)
