#!/usr/bin/env bash
# datasets 5.2.0: whether a parquet file holds conversations as structures or as JSON text depends on the rows.
#
# Expected: a list of {"role", "content"} is written to parquet as a list of structures, which every reader knows.
# Seen: if one message of the file has a key that others lack (a "name", a tool call), the column becomes a list of JSON
# texts. datasets itself decodes them again; pyarrow, and what is built on it, sees strings where messages were.
# Dataset.from_list on the same rows does a third thing: structures in which every message has every key, null if absent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
HF_HOME="$folder" venv/bin/python - <<'PYTHON'
import json

import datasets
import pyarrow.parquet

datasets.disable_progress_bars()
user, named = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi", "name": "Bo"}
answer = {"role": "assistant", "content": "Hello"}


def in_parquet(name, conversations):
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps({"messages": messages}) + "\n" for messages in conversations)
    datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train").to_parquet(f"{name}.parquet")
    return pyarrow.parquet.read_table(f"{name}.parquet").to_pylist()[0]["messages"][0]


alike = in_parquet("alike", [[user, answer], [user, answer]])
unlike = in_parquet("unlike", [[user, answer], [named, answer]])
listed = datasets.Dataset.from_list([{"messages": [user, answer]}, {"messages": [named, answer]}])[0]["messages"][0]
print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
print("equal keys:", repr(alike))
print("one more key in another row:", repr(unlike))
print("Dataset.from_list:", repr(listed))
assert alike == user
assert isinstance(unlike, str) and json.loads(unlike) == user
assert listed == {**user, "name": None}
PYTHON
