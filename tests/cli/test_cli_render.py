"""`templatekit render` as a process: its output, its files, its messages and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from testkit.command_line import Templatekit
from testkit.platforms import needs_dev_full

from templatekit import create_registry
from templatekit.cli.render import render
from templatekit.config.staging import PREFIX

ROWS = [
    {"instruction": "Grüß", "input": "", "output": "Hallo 👋"},
    {"instruction": "Add", "input": "1, 2", "output": "3"},
]
TEMPLATE = "Q: {{ instruction }}{{ context }}\nA:{{ response }}{{ eos_token }}"
SUMMARY = "adapter: alpaca (inferred from the records' keys)\nrows in: 2, rows out: 2, dropped: 0"
SPANS = [
    {"start": 0, "end": 3, "origin": "template"},
    {"start": 3, "end": 6, "origin": "messages[0].content"},
    {"start": 6, "end": 10, "origin": "messages[0].context"},
    {"start": 10, "end": 13, "origin": "template"},
    {"start": 13, "end": 14, "origin": "messages[1].content"},
]
ENDLESS = """
from templatekit import Source, hookimpl

class Endless(Source):
    name = "endless"

    def accepts(self, address):
        return address == "endless"

    def read(self, address):
        while True:
            yield {"instruction": "again", "output": "and again"}

@hookimpl
def templatekit_sources():
    return [Endless()]
"""


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Options that render two rows with the template above."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "qa.jinja").write_text(TEMPLATE, encoding="utf-8")
    return ["--dataset", "rows.jsonl", "--template", "qa.jinja"]


@pytest.fixture
def endless(tmp_path: Path) -> list[str]:
    """Options for a run that never ends."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "endless.py").write_text(ENDLESS, encoding="utf-8")
    return ["--plugin-dir", "plugins", "--dataset", "endless"]


def files(folder: Path) -> set[str]:
    """All files in a folder and below, without Python's caches."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


# Contents


def test_text_goes_to_standard_output(templatekit: Templatekit, data: list[str]) -> None:
    result = templatekit("render", *data)
    assert result.code == 0
    assert result.err == f"{SUMMARY}\n"
    first, second = result.out.splitlines()
    assert "Grüß" in first, "text stays readable"
    assert json.loads(second) == {"row": 1, "text": "Q: Add1, 2\nA:3", "spans": SPANS}
    assert list(json.loads(second)) == ["row", "text", "spans"]


def test_with_a_tokenizer_there_are_ids_and_labels(
    templatekit: Templatekit, data: list[str], tokenizer_folder: Path
) -> None:
    result = templatekit("render", *data, "--tokenizer", tokenizer_folder)
    assert result.code == 0
    first, second = map(json.loads, result.out.splitlines())
    assert list(second) == ["row", "text", "input_ids", "labels", "spans"]
    assert second["text"] == "Q: Add1, 2\nA:3<|end|>"
    assert len(second["input_ids"]) == len("Q: Add1, 2\nA:3") + 1
    assert second["labels"] == [-100] * 13 + second["input_ids"][-2:]
    assert len(first["input_ids"]) == len("Q: Grüß\nA:Hallo 👋".encode()) + 1
    trained = 2 + len("Hallo 👋".encode()) + 1
    tokens = len(first["input_ids"]) + len(second["input_ids"])
    assert result.err == f"{SUMMARY}, tokens: {tokens}, trained tokens: {trained}\n"


def test_weights_are_written_where_they_are_not_0_or_1(
    templatekit: Templatekit, tmp_path: Path, tokenizer_folder: Path
) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]
    (tmp_path / "chat.json").write_text(json.dumps([{"messages": messages}]))
    result = templatekit("render", "--dataset", "chat.json", "--template", "chatml", "--tokenizer", tokenizer_folder)
    row = json.loads(result.out)
    assert list(row) == ["row", "text", "input_ids", "labels", "loss_weights", "spans"]
    assert {weight for weight in row["loss_weights"] if weight} == {0.5}
    assert [bool(weight) for weight in row["loss_weights"]] == [label != -100 for label in row["labels"]]


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_every_format_holds_the_same_rows(
    suffix: str, ids: bool, templatekit: Templatekit, data: list[str], tokenizer_folder: Path, tmp_path: Path
) -> None:
    options = [*data, "--tokenizer", tokenizer_folder] if ids else data
    lines = [json.loads(line) for line in templatekit("render", *options).out.splitlines()]
    result = templatekit("render", *options, "--output", f"out/deep/rows.{suffix}")
    assert (result.code, result.out) == (0, "")
    path = tmp_path / "out" / "deep" / f"rows.{suffix}"
    table = pq.read_table(path) if suffix == "parquet" else pa.ipc.open_file(path).read_all()
    rows = table.to_pylist()
    assert [row.pop("sample") for row in rows] == [0] * len(rows)
    for row in rows if ids else ():
        assert row.pop("loss_weights") == [float(label != -100) for label in row["labels"]]
        assert row.pop("truncated") is None
    assert rows == lines
    assert files(tmp_path) == {"rows.jsonl", "qa.jinja", f"out/deep/rows.{suffix}"}


@pytest.mark.parametrize("name", ["parquet", "arrow"])
def test_binary_formats_go_through_a_pipe(name: str, templatekit: Templatekit, data: list[str], tmp_path: Path) -> None:
    assert templatekit("render", *data, "--format", name, prefix="COMMAND | cat > piped").code == 0
    path = tmp_path / "piped"
    table = pq.read_table(path) if name == "parquet" else pa.ipc.open_file(path).read_all()
    assert table.column("row").to_pylist() == [0, 1]


def test_a_format_overrides_the_suffix(templatekit: Templatekit, data: list[str], tmp_path: Path) -> None:
    assert templatekit("render", *data, "--format", "jsonl", "--output", "rows.parquet").code == 0
    assert len((tmp_path / "rows.parquet").read_text(encoding="utf-8").splitlines()) == 2
    assert templatekit("render", *data, "--output", "ROWS.PARQUET").code == 0
    assert pq.read_table(tmp_path / "ROWS.PARQUET").num_rows == 2


def test_the_summary_as_json(templatekit: Templatekit, tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b", "id": 7}, {"instruction": "a"}, {"instruction": "a", "output": " "}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    result = templatekit("render", "--dataset", "rows.json", "--on-error", "skip", "--json")
    assert json.loads(result.err) == {
        "adapter": "alpaca",
        "rows_in": 3,
        "rows_out": 2,
        "samples": 2,
        "dropped": {"missing_output": 1},
        "dropped_rows": {"missing_output": [1]},
        "first_dropped": {"missing_output": "rows.json:1:output: missing; found keys instruction; expected text"},
        "truncated": {},
        "truncated_rows": {},
        "first_truncated": {},
        "tokens": 0,
        "trained_tokens": 0,
        "untrained_turns": 0,
        "empty_responses": 1,
        "left_out": {},
        "equal_pairs": 0,
        "early_pairs": 0,
        "differing_prompts": 0,
        "unread_keys": {"id": 0},
    }


def test_dropped_examples_are_counted_with_their_rows(
    templatekit: Templatekit, tmp_path: Path, tokenizer_folder: Path
) -> None:
    rows = [{"instruction": "a", "output": "b" * (9 if index % 2 else 2000)} for index in range(14)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    options = ["--dataset", "rows.json", "--tokenizer", tokenizer_folder, "--max-length", "1000"]
    result = templatekit("render", *options)
    assert result.code == 0
    assert [json.loads(line)["row"] for line in result.out.splitlines()] == [1, 3, 5, 7, 9, 11, 13]
    assert result.lines[1].startswith("rows in: 14, rows out: 7, dropped: 7, tokens: ")
    assert result.lines[2] == (
        "dropped 7 × too_long (rows 0, 2, 4, 6, 8, …); the first: rows.json:0: too long; found 2141 tokens; "
        "expected at most 1000"
    )


def test_shortened_examples_are_counted_and_marked(
    templatekit: Templatekit, tmp_path: Path, tokenizer_folder: Path
) -> None:
    rows = [{"instruction": "a", "output": "b" * count} for count in (9, 2000)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    options = ["--dataset", "rows.json", "--tokenizer", tokenizer_folder, "--max-length", "1000"]
    result = templatekit("render", *options, "--truncation", "response")
    assert result.code == 0
    whole, short = map(json.loads, result.out.splitlines())
    assert "truncated" not in whole and short["truncated"] == "response"
    assert len(short["input_ids"]) == len(short["labels"]) == 1000
    assert result.lines[2] == "shortened 1 × response (rows 1); the first: rows.json:1: 1000 of 2141 tokens"
    summary = json.loads(templatekit("render", *options, "--truncation", "response", "--json").err)
    assert (summary["truncated"], summary["truncated_rows"]) == ({"response": 1}, {"response": [1]})
    shown = templatekit("preview", *options, "--truncation", "response", "--row", "1")
    assert "row 1, 1000 tokens, " in shown.out and ", shortened: response" in shown.out


def test_a_plugin_s_exporter_is_used_and_checked(templatekit: Templatekit, data: list[str], tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "texts.py").write_text("""
import os
from templatekit import Exporter, hookimpl

class Texts(Exporter):
    name = "texts"
    suffixes = (".txt",)

    def write(self, examples, file):
        what = os.environ.get("WHAT")
        count = 0
        for example in examples:
            print("writing")
            if what == "raise":
                raise KeyError("boom")
            file.write(example.text.encode() + b"\\n")
            count += 1
            if what == "stop":
                break
        return None if what == "none" else count

@hookimpl
def templatekit_exporters():
    return [Texts()]
""")
    options = ["render", *data, "--plugin-dir", "plugins", "--output", "out.txt"]
    result = templatekit(*options)
    assert result.code == 0
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "Q: Grüß\nA:Hallo 👋\nQ: Add1, 2\nA:3\n"
    (tmp_path / "out.txt").unlink()
    for what, message in [
        ("raise", "Error: format 'texts' raised KeyError: 'boom'"),
        ("stop", "Error: format 'texts' wrote 1 examples; expected all: 1 and more to come"),
        ("none", "Error: format 'texts' wrote None examples; expected all: 2"),
    ]:
        result = templatekit(*options, env={"WHAT": what})
        assert (result.code, result.lines[-1]) == (2, message)
        assert not (tmp_path / "out.txt").exists()


def test_print_calls_of_plugins_do_not_mix_with_the_rows(templatekit: Templatekit, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "noisy.py").write_text("""
from templatekit import Adapter, Example, Message, hookimpl
print("imported")

class Noisy(Adapter):
    name = "noisy"
    keys = required = ("q", "a")

    def to_example(self, record):
        print("read", record["q"])
        return Example(
            messages=(Message(role="user", content=record["q"]), Message(role="assistant", content=record["a"]))
        )

@hookimpl
def templatekit_adapters():
    print("asked")
    return [Noisy()]
""")
    (tmp_path / "rows.jsonl").write_text('{"q": "x", "a": "y"}')
    for command in ["render"], ["preview"], ["adapters", "list", "--json"]:
        options = ["--plugin-dir", "plugins"] + (["--dataset", "rows.jsonl"] if len(command) == 1 else [])
        result = templatekit(*command, *options)
        assert result.code == 0
        assert "asked" in result.err
        assert not {"imported", "asked", "read x"} & set(result.out.splitlines()), result.out


# Files


@pytest.mark.parametrize("name", ["Ausgabe größer 語.jsonl", "n" * 240 + ".jsonl", "語" * 70 + ".jsonl"])
def test_long_and_foreign_names(name: str, templatekit: Templatekit, tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["größe 語 " + "d" * 60] * 8)
    folder.mkdir(parents=True)
    (folder / name).write_text('{"instruction": "a", "output": "b"}')
    result = templatekit("render", "--dataset", folder / name, "--output", folder / "out" / name)
    assert (result.code, len(result.lines)) == (0, 2)
    assert files(folder) == {name, f"out/{name}"}
    result = templatekit("render", "--dataset", folder / name, "--output", folder / ("x" * 300))
    assert (result.code, len(result.lines)) == (2, 1)
    assert result.err.endswith("cannot be written: File name too long\n")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "--output '.' is a folder; expected a file"),
        ("rows.jsonl/out.jsonl", "--output 'rows.jsonl/out.jsonl' cannot be written: Not a directory"),
        ("/proc/no/out.jsonl", "--output '/proc/no/out.jsonl' cannot be written: No such file or directory"),
        (
            "out.xlsx",
            "--output 'out.xlsx': no format has this ending; known: .jsonl, .ndjson, .json, .parquet, .arrow, "
            ".feather; or name a --format",
        ),
        ("loop/out.jsonl", None),
    ],
)
def test_an_output_that_cannot_be_written(
    output: str, message: str | None, templatekit: Templatekit, data: list[str], tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    result = templatekit("render", *data, "--output", output)
    assert (result.code, len(result.lines), result.out) == (2, 1, "")
    if message is not None:
        assert result.err == f"Error: {message}\n"
    assert files(tmp_path) == {"rows.jsonl", "qa.jinja"}


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(templatekit: Templatekit, data: list[str], tmp_path: Path) -> None:
    as_others = "setpriv --bounding-set=-dac_override,-dac_read_search COMMAND" if os.geteuid() == 0 else ""
    (tmp_path / "closed").mkdir(mode=0o500)
    for name in "out.jsonl", "deeper/out.jsonl":
        result = templatekit("render", *data, "--output", f"closed/{name}", prefix=as_others)
        assert (result.code, result.err) == (
            2,
            f"Error: --output 'closed/{name}' cannot be written: Permission denied\n",
        )


def test_a_file_is_replaced_only_by_a_complete_one(templatekit: Templatekit, data: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("before")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    options = ("--output", "out.jsonl", "--overwrite")
    result = templatekit("render", *data, *options)
    assert (result.code, len(result.lines)) == (2, 1)
    assert output.read_text() == "before"
    assert templatekit("render", *data, *options, "--on-error", "skip").code == 0
    assert json.loads(output.read_text())["row"] == 0
    assert files(tmp_path) == {"rows.jsonl", "qa.jinja", "out.jsonl"}


def test_a_link_stays_a_link(templatekit: Templatekit, data: list[str], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "out.jsonl").write_text("before")
    (tmp_path / "link.jsonl").symlink_to("real/out.jsonl")
    assert templatekit("render", *data, "--output", "link.jsonl", "--overwrite").code == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len((tmp_path / "real" / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_devices_are_written_directly(templatekit: Templatekit, data: list[str]) -> None:
    before = Path("/dev/null").stat()
    assert templatekit("render", *data, "--output", "/dev/null").code == 0
    after = Path("/dev/null").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert templatekit("render", *data, "--output", "/dev/stdout").out == templatekit("render", *data).out


def test_a_new_file_has_the_usual_permissions(templatekit: Templatekit, data: list[str], tmp_path: Path) -> None:
    assert templatekit("render", *data, "--output", "out.jsonl", prefix="umask 027; COMMAND").code == 0
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_no_file(templatekit: Templatekit, endless: list[str], tmp_path: Path) -> None:
    prefix = "ulimit -f 100; COMMAND"  # blocks of 1024 bytes
    for name in "out.jsonl", "out.parquet", "out.arrow":
        result = templatekit("render", *endless, "--output", name, prefix=prefix)
        assert (result.code, result.err) == (1, f"Error: --output {name!r} cannot be written: File too large\n")
        assert files(tmp_path) == {"plugins/endless.py"}


def test_the_help_names_every_format() -> None:
    """The formats are of plugins, which the help does not load."""
    [option] = [option for option in render.params if option.name == "format"]
    named = str(vars(option)["help"]).partition(", or a plugin's")[0].split(", ")
    assert sorted(named) == sorted(create_registry().exporters)


@needs_dev_full
@pytest.mark.parametrize("command", [["render"], ["preview"], ["plugins"], ["--help"], ["templates", "--json"]])
def test_standard_output_on_a_full_disk(command: list[str], templatekit: Templatekit) -> None:
    result = templatekit(*command, prefix="COMMAND > /dev/full")
    assert (result.code, result.err) == (1, "Error: standard output: No space left on device\n")


# Exit


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, None)]
)
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_an_interrupted_run_leaves_no_file(
    number: signal.Signals, code: int, said: str | None, name: str, endless: list[str], tmp_path: Path
) -> None:
    script = Path(sys.executable).with_name("templatekit")
    process = subprocess.Popen(
        [script, "render", *endless, "--output", name], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in tmp_path.glob(f"{PREFIX}out*")):
        assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert [line for line in err.splitlines() if line] == ([said] if said else [])
    assert files(tmp_path) == {"plugins/endless.py"}


def test_a_closed_pipe_is_no_failure(templatekit: Templatekit, endless: list[str]) -> None:
    for command in ["render", *endless], ["render", *endless, "--format", "parquet"]:
        result = templatekit(*command, prefix="COMMAND | head -c 100000 > part; exit ${PIPESTATUS[0]}")
        assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams_are_no_crash(closed: str, templatekit: Templatekit, data: list[str]) -> None:
    for command in ["render", *data], ["plugins"], ["preview", *data]:
        result = templatekit(*command, prefix=f"COMMAND {closed}")
        assert result.code == 0
        assert "Traceback" not in result.err


# Requirements


def test_no_heavy_library_is_imported(data: list[str], tokenizer_folder: Path, tmp_path: Path) -> None:
    code = """
import sys
from templatekit.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "transformers", "datasets", "pandas", "peft", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    options = [*data, "--tokenizer", str(tokenizer_folder), "--output", "out.jsonl"]
    subprocess.run([sys.executable, "-c", code, "render", *options], cwd=tmp_path, check=True, capture_output=True)


def test_memory_stays_flat(endless: list[str], tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("templatekit")
    options = [option.replace("plugins", str(tmp_path / "plugins")) for option in endless]
    peaks = []
    for rows in "1000", "16000":
        pid = os.posix_spawn(
            script,
            [str(script), "render", *options, "--limit", rows, "--output", str(tmp_path / f"{rows}.parquet"), "--json"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 2, str(tmp_path / "err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            ],
        )
        _, status, usage = os.wait4(pid, 0)
        assert status == 0
        assert json.loads((tmp_path / "err").read_text())["rows_out"] == int(rows)
        peaks.append(usage.ru_maxrss)
    assert peaks[1] < peaks[0] + 30_000, f"KB at 1,000 and at 16,000 rows: {peaks}"
