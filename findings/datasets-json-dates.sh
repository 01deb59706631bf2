#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("json") turns a column of texts into timestamps when every value looks like a date.
#
# Expected: an answer that is the JSON string "2020-01-01" stays that string.
# Seen: the feature is timestamp[s], and the value is a datetime. A template prints it as "2020-01-01 00:00:00", so a
# model is trained on text that the file does not hold. One answer that is no date keeps the column text, so the same
# row is read differently depending on its neighbours.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
HF_HOME="$folder" venv/bin/python - <<'PYTHON'
import json

import datasets

datasets.disable_progress_bars()


def loaded(name, answers):
    with open(name, "w") as file:
        file.writelines(json.dumps({"question": "When?", "answer": answer}) + "\n" for answer in answers)
    return datasets.load_dataset("json", data_files=name, split="train")


dates = loaded("dates.jsonl", ["2020-01-01", "2021-02-03"])
mixed = loaded("mixed.jsonl", ["2020-01-01", "in spring"])
print("datasets", datasets.__version__)
print("all dates:", dates.features["answer"], repr(dates[0]["answer"]))
print("one is no date:", mixed.features["answer"], repr(mixed[0]["answer"]))
assert dates.features["answer"].dtype == "timestamp[s]"
assert str(dates[0]["answer"]) == "2020-01-01 00:00:00"
assert mixed[0]["answer"] == "2020-01-01"
PYTHON
