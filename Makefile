# make demo, make test, make lint. Everything happens in .venv; PYTHON=... chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/python tools/train_net.py --eval-only --config configs/demo_lqn.yaml

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is installed beside the package itself: nothing, or an extra of setup.py.
$(VENV)/.demo: extra =
$(VENV)/.test: extra = [test]
$(VENV)/.dev: extra = [dev]
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: setup.py | $(VENV)
	$(BIN)/python -m pip install --editable ".$(extra)"
	touch $@

$(VENV):
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) output build *.egg-info
