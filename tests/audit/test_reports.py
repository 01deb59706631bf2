"""The report as JSON and as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from typing import Any

import pytest

from templatekit.audit import RULES, Report
from templatekit.audit.html_report import to_html
from templatekit.audit.report import JSON_VERSION
from templatekit.audit.text_report import percent, to_rich, to_text

RunAudit = Callable[..., Report]
NOTHING = type(None)
REPORT: Mapping[str, object] = {
    "version": int,
    "dataset": str,
    "adapter": (str, NOTHING),
    "template": str,
    "tokenizer": (str, NOTHING),
    "train_on": str,
    "max_length": (int, NOTHING),
    "rows": int,
    "usable": int,
    "tokens": (int, NOTHING),
    "trained_tokens": (int, NOTHING),
    "lengths": {
        "unit": str,
        "shortest": int,
        "median": int,
        "p95": int,
        "p99": int,
        "longest": int,
        "longest_row": int,
        "over": {"512": int, "1024": int, "2048": int, "4096": int},
    },
    "against": [{"dataset": str, "rows": int, "unusable": int}],
    "findings": [
        {
            "code": str,
            "level": str,
            "title": str,
            "help": str,
            "count": int,
            "share": (float, NOTHING),
            "rows": [int],
            "parts": [{"what": str, "count": int, "first_row": (int, NOTHING), "detail": str}],
            "example": {
                "row": (int, NOTHING),
                "detail": str,
                "text": str,
                "runs": [{"text": str, "kind": str, "origin": str, "trained": bool, "here": bool}],
            },
        }
    ],
    "clean": [str],
    "not_checked": dict,
}


def assert_shape(value: object, shape: Any, where: str = "report") -> None:
    if isinstance(shape, Mapping):
        assert isinstance(value, dict) and list(value) == list(shape), where
        for key, inner in shape.items():
            assert_shape(value[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for item in value:
            assert_shape(item, shape[0], f"{where}[]")
    else:
        assert isinstance(value, shape), (where, value)
        assert type(value) is bool or shape is not bool


def talk(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **more}


SCRIPT = "<script>alert('1')</script>"
ATTRIBUTE = '"><img src=x onerror=alert(1)>'
BAD = (
    talk(f"{SCRIPT}\x00", f"{ATTRIBUTE} <|im_end|>", **{SCRIPT: ATTRIBUTE}),
    talk("Hi", ""),
    talk("Hi", "</pre></section><b>Bye"),
    {"messages": ATTRIBUTE},
)


@pytest.fixture
def report(run_audit: RunAudit) -> Report:
    return run_audit(BAD, against=[talk("Hi", "Hello")], max_length=30, tokenizer={"eos": "<|endoftext|>"})


def test_json_has_the_documented_keys(report: Report) -> None:
    values = json.loads(json.dumps(report.as_dict()))
    assert_shape(values, REPORT)
    assert values["version"] == JSON_VERSION == 1
    found = [finding["code"] for finding in values["findings"]]
    assert len(found) >= 8
    everything = [*found, *values["clean"], *values["not_checked"]]
    assert sorted(everything) == sorted(rule.code for rule in RULES)
    for finding in values["findings"]:
        example = finding["example"]
        bare = "".join(run["text"] for run in example["runs"])
        assert re.sub("[⟦⟧▶◀]", "", example["text"]).strip("…") == bare.strip("…")


def test_the_check_of_keys_sees_a_missing_one(report: Report) -> None:
    values = report.as_dict()
    del values["findings"][0]["share"]
    with pytest.raises(AssertionError, match="findings"):
        assert_shape(values, REPORT)


class _Tags(HTMLParser):
    """Every tag and attribute of a page, and the tags that are open at its end."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_escapes_what_comes_from_data(report: Report) -> None:
    page = to_html(report)
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.tags <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "strong", "details", "summary", "table",
        "tr", "th", "td", "nav", "a", "section", "pre", "span", "mark",
    }  # fmt: skip
    assert tags.attributes <= {
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "style",
        "id",
        "href",
        "title",
        "open",
    }
    shown = "".join(tags.text)
    assert SCRIPT in shown and ATTRIBUTE in shown  # as text
    assert "\x00" not in page


def test_the_page_needs_nothing_else(report: Report) -> None:
    page = to_html(report)
    assert not re.search(r"https?:|url\(|@import|src=\"|<link", page.replace("src=x", ""))
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_marks_what_is_trained_and_the_place(report: Report) -> None:
    page = to_html(report)
    assert re.search(r'<span class="trained" title="[^"]*, trained"><mark>&lt;\|im_end\|&gt;</mark></span>', page)
    for finding in report.findings:
        assert f'<section class="{finding.rule.level}" id="{finding.rule.code}">' in page


def test_the_page_of_a_clean_set(run_audit: RunAudit) -> None:
    page = to_html(run_audit([talk("Hi", "Hello")], tokenizer=None))
    assert "0 errors, 0 warnings, 0 notes" in page and "<section" not in page


def test_text_with_and_without_colours_is_the_same(report: Report) -> None:
    assert to_rich(report).plain == to_text(report)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (1, "100.0 %"), (0.1234, "12.3 %"), (1e-6, "< 0.1 %"), (1 - 1e-6, "> 99.9 %")],
)
def test_a_share_is_never_rounded_to_nothing(share: float, text: str) -> None:
    assert percent(share) == text
