# `make demo`, `make test` and `make fuzz` set up .venv with all that they need, and may be run again.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

PROGRAMS ?= 20000
SEED ?= 0
HOURS ?= 0

.PHONY: demo test fuzz lint clean

demo: .venv/installed-examples
	$(BIN)/python examples/sentence_embeddings.py

# One torch thread for each of the two workers: more only wait for each other. Files stay whole: what
# the tests of a file share is made once.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Generated programs beside eager PyTorch, in two processes: see docs/fuzzing.md.
fuzz: .venv/installed-test
	$(BIN)/python -m tests.fuzz --programs $(PROGRAMS) --seed $(SEED) --hours $(HOURS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/installed-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[$*]"
	$(BIN)/python -m pip install -c constraints.txt --no-deps tensorrt-stubs
	touch $@

clean:
	rm -rf .venv
