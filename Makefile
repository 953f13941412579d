# make demo   set everything up and run the main job     make test   set up and run the tests
# make test-triton, make demo-control, make lint: see below
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export PYTHONSAFEPATH := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo demo-control bench-learning test test-triton lint clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/chromium.sh
	$(PYTHON) -c 'import sys; sys.exit("treewright needs Python 3.11 or newer, this is %d.%d; set PYTHON=" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,web]'
	bash scripts/chromium.sh
	touch $(STAMP)

demo: setup
	$(BIN)/treewright demo

demo-control: setup
	$(BIN)/treewright bench control --json runs/control.json

# About half an hour of one idle core; finished runs are kept, so it goes on where it was stopped.
bench-learning: setup $(VENV)/.tested
	$(BIN)/treewright bench learning --json runs/learning.json --plot runs/learning.svg

test: setup $(VENV)/.tested
	$(BIN)/python -m pytest --durations=10

$(VENV)/.tested: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,web,postgres,data,plot,ilp,dense,gym,lora,grammar,test]'
	$(BIN)/python -m pip install --quiet --no-deps -r tests/foreign.txt
	bash scripts/postgres.sh
	touch $(VENV)/.tested

# The Triton kernels without a GPU: the interpreter against float64, and compiling for sm_80 and sm_90 within budgets.
TRITON ?= 3.7.1
TORCH ?= 2.13.0
test-triton:
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install --quiet torch==$(TORCH)
	$(VENV)-triton/bin/python -m pip install --quiet -c constraints.txt triton==$(TRITON) numpy pytest pytest-asyncio hypothesis
	PYTHONPATH=pkg $(VENV)-triton/bin/python -m pytest tests/kernels --durations=5

lint: setup $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p treewright

clean:
	rm -rf $(VENV) $(VENV)-triton runs build dist .pytest_cache .mypy_cache .ruff_cache
