# `make demo` and `make test` set up all they need in .venv; the install is kept until its requirements change.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-gpu compare format clean help

help:
	@echo "make demo      train a small model and compress it, in seconds (results in demo/)"
	@echo "make test      the whole gate: format, lint, types, tests"
	@echo "make test-gpu  what only a CUDA device can show"
	@echo "make compare   this project and its peers side by side, hours: WORKLOAD=cnn for one (results in benchmarks/results/)"
	@echo "make format    let ruff mend what it can"
	@echo "make clean     remove what make made"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,mnist]'
	@touch $@

demo: $(READY)
	$(BIN)/compress demo --out demo --overwrite

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict compress
	$(BIN)/pytest -q

# Where there is an NVIDIA driver, the onnxruntime that can use it takes the place of the plain one: they share files.
test-gpu: $(READY)
	@if command -v nvidia-smi > /dev/null && ! $(BIN)/python -m pip show --quiet onnxruntime-gpu 2> /dev/null; then \
		$(BIN)/python -m pip uninstall --quiet --yes onnxruntime; \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt 'onnxruntime-gpu[cuda,cudnn]'; fi
	$(BIN)/pytest -q -m gpu -rs

# Dense models come from benchmarks.train: a WORKLOAD that is named is trained where it is missing. OPTIONS: see --help.
WORKLOAD ?= all
compare: $(READY)
	$(BIN)/python -m benchmarks.compare --workload $(WORKLOAD) $(OPTIONS)

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
