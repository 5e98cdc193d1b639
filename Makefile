# All commands use a virtual environment in .venv, which is created on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Folders to lint, so that users' own files in the repository are not.
CODE   := configs docs examples multipath_jax tests

# Without it, `python -m` imports files in the current folder, such as types.py, first.
export PYTHONSAFEPATH = 1

.PHONY: train test test-slow docs reproduce-smoke lint format constraints clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[test]'
	touch $@

train: $(READY)  ## train the default network
	$(BIN)/python -m multipath_jax.main --config=digits --workdir=runs/digits

test: $(READY) lint  ## formatting, lint and the default suite
	$(BIN)/python -m pytest -n 3

test-slow: $(READY)  ## tests that take minutes
	$(BIN)/python -m pytest -m slow

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY)  ## documentation site, in build/site
	$(BIN)/mkdocs build --strict --quiet

reproduce-smoke: export JAX_PLATFORMS = cpu
reproduce-smoke: $(READY)  ## three steps of every row of Tables 2 and 3; DATA_DIR=DIR for CIFAR-10
	$(BIN)/python -m multipath_jax.reproduce table2 --smoke --data_dir=$(DATA_DIR)
	$(BIN)/python -m multipath_jax.reproduce table3 --smoke --data_dir=$(DATA_DIR)

lint: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

format: $(READY)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

constraints: $(READY)  ## record the installed versions
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '@' > constraints.txt

clean:
	rm -rf $(VENV)
