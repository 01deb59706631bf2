#!/usr/bin/env bash
# hypothesis 6.170.17: a derandomized test tries other inputs once an unrelated module of the project is imported.
#
# Expected: with derandomize=True and no database, a test tries the same inputs in every run.
# Seen: numbers and texts that stand in imported modules of the working folder are mixed into the inputs. Which modules
# are imported depends on the tests that ran before in the process. So a property may fail in one order of tests, or on
# one worker of pytest-xdist, and pass alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet hypothesis==6.170.17
cd "$folder"
echo "LIMIT = 987654321987" > unrelated.py
cat > numbers_tried.py <<'PYTHON'
import importlib
import json
import sys

import hypothesis
from hypothesis import strategies

tried = []


@hypothesis.settings(derandomize=True, database=None, max_examples=200)
@hypothesis.given(strategies.integers())
def test(number):
    tried.append(number)


for name in sys.argv[1:]:
    importlib.import_module(name)
test()
print(json.dumps(tried))
PYTHON
venv/bin/python numbers_tried.py > alone
venv/bin/python numbers_tried.py > again
venv/bin/python numbers_tried.py unrelated > beside
cmp alone again
for run in alone beside; do
    echo "$run: 987654321987 is tried: $(grep -c 987654321987 "$run" || true)"
done
! grep -q 987654321987 alone
grep -q 987654321987 beside
