#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("csv") loses answers that read "None", "null", "NA" or "nan", and leading zeros.
#
# Expected: a CSV file holds text, so an answer "None" to the question "What is left?" is that text.
# Seen: these answers become null, as an empty cell does, and "007" becomes the integer 7. Trainers then drop the row,
# fail on it, or train on an empty answer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
HF_HOME="$folder" venv/bin/python - <<'PYTHON'
import datasets

datasets.disable_progress_bars()


def answers(cells):
    with open("rows.csv", "w") as file:
        file.write("question,answer\n" + "".join(f"What is left?,{cell}\n" for cell in cells))
    return datasets.load_dataset("csv", data_files="rows.csv", split="train", download_mode="force_redownload")["answer"][:]


print("datasets", datasets.__version__)
for cells in (["None", "null", "NA", "nan", "a cup"], ["007", "012"]):
    print(cells, "->", answers(cells))
assert answers(["None", "null", "NA", "nan", "a cup"]) == [None, None, None, None, "a cup"]
assert answers(["007", "012"]) == [7, 12]
PYTHON
