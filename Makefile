# make demo   forget a shape, attack, relearn, report: the whole story on a CPU
# make test   the tests that need neither a GPU nor a network
# make lint   ruff and mypy
# make clean  remove the virtual environment and what the tools left behind (runs/ stays)

PYTHON ?= python3
RECIPE ?= shapes/demo
OUT ?= runs/demo
BIN := .venv/bin
INSTALLED := .venv/.installed

# A machine without an NVIDIA GPU gets the torch that constraints/cpu.txt names; one with a GPU gets the newest.
CONSTRAINT := $(if $(shell command -v nvidia-smi 2>/dev/null),,PIP_CONSTRAINT=constraints/cpu.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(INSTALLED)
	$(BIN)/adapter-mu run $(RECIPE) --out $(OUT)
	@echo "The report is $(abspath $(OUT))/report.html: open it in a browser."

test: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "not slow and not gpu and not network"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist

$(INSTALLED): pyproject.toml constraints/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adapter-mu needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@echo "Installing into .venv: about 1.7 GB on a CPU machine, some minutes, once."
	$(PYTHON) -m venv .venv
	$(CONSTRAINT) $(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@
