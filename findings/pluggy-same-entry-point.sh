#!/usr/bin/env bash
# pluggy 1.7.0: of two distributions whose entry points have the same name, the second is skipped without a word.
#
# Expected: both plugins load, or an error names the two, since an entry point's name is only unique in its distribution.
# Seen: load_setuptools_entrypoints returns 1, and the hook reaches one of the two. Which one depends on sys.path.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pluggy==1.7.0
cd "$folder"
for name in one two; do
    mkdir -p "$name/dist_$name-1.0.dist-info"
    printf 'import pluggy\n\n\n@pluggy.HookimplMarker("demo")\ndef hello():\n    return "%s"\n' "$name" > "$name/module_$name.py"
    printf 'Metadata-Version: 2.1\nName: dist-%s\nVersion: 1.0\n' "$name" > "$name/dist_$name-1.0.dist-info/METADATA"
    printf '[demo]\ngreeter = module_%s\n' "$name" > "$name/dist_$name-1.0.dist-info/entry_points.txt"
done
cat > loaded.py <<'PYTHON'
import sys

import pluggy


class Specs:
    @pluggy.HookspecMarker("demo")
    def hello(self):
        """Says who was loaded."""


manager = pluggy.PluginManager("demo")
manager.add_hookspecs(Specs)
loaded = manager.load_setuptools_entrypoints("demo")
print("pluggy", pluggy.__version__)
print("two distributions, loaded:", loaded, manager.hook.hello())
assert (loaded, manager.hook.hello()) == (1, [sys.argv[1]])
PYTHON
PYTHONPATH="$folder/one:$folder/two" venv/bin/python loaded.py one
PYTHONPATH="$folder/two:$folder/one" venv/bin/python loaded.py two
