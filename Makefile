# Linux, Python >= 3.11 and git. `make run` does all the set-up; everything else uses the same .venv.
PYTHON ?= python3
VENV   := $(CURDIR)/.venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := $(CURDIR)/.venv-peers

# The `python` in a stage's command comes from PATH; DVC and MLflow stay silent towards their makers.
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
# `dvc exp` needs an author; a clone without a configured one still works.
ifeq ($(shell git config user.email),)
export GIT_AUTHOR_NAME := clip-refine
export GIT_AUTHOR_EMAIL := clip-refine@localhost
export GIT_COMMITTER_NAME := clip-refine
export GIT_COMMITTER_EMAIL := clip-refine@localhost
endif

.PHONY: install lock run test test-slow lint audit generate bench bench-peers bench-gpu ablate ui clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# Every package in the version and with the hash of requirements.lock; uv where it is there, pip otherwise.
$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into .venv; torch alone is up to several GB, so this may take minutes."
	@if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements.lock && \
	  uv pip install --quiet --python $(BIN)/python --no-deps --editable .; \
	else \
	  export PIP_DISABLE_PIP_VERSION_CHECK=1 && \
	  $(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock && \
	  $(BIN)/python -m pip install --quiet --no-deps --editable .; \
	fi
	touch $@

lock: ## resolve pyproject.toml anew into requirements.lock (needs uv); then `make install`
	uv pip compile pyproject.toml --extra demo --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --upgrade --quiet --output-file requirements.lock

install: $(STAMP) ## make .venv with everything

run: $(STAMP) ## the whole pipeline on params.yaml, then the before/after table and how to use the model
	@test -e .git || dvc config --local core.no_scm true
	@python -m pipeline_lib check --no-data
	dvc repro
	@echo
	@python -m pipeline_lib.report

test: $(STAMP) ## the quick tests, in two processes of one thread (JOBS=4: four)
	OMP_NUM_THREADS=1 python -m pytest -n $(or $(JOBS),2)

test-slow: $(STAMP) ## the slow proofs: processes, kills, real DVC and MLflow
	python -m pytest -m slow

lint: $(STAMP) ## ruff, mypy, import-linter
	ruff check .
	ruff format --check .
	mypy
	lint-imports

audit: ## known vulnerabilities of the versions in requirements.lock, by pip-audit in an environment of its own (network)
	@place=$$(mktemp -d) && trap 'rm -rf "$$place"' EXIT && $(PYTHON) -m venv "$$place" && \
	"$$place/bin/pip" install --quiet --disable-pip-version-check pip-audit && \
	"$$place/bin/pip-audit" --disable-pip --require-hashes --requirement requirements.lock

generate: $(STAMP) ## write ablations/*.yaml and docs/params.* anew, after an edit of params.yaml or a setting
	python -m pipeline_lib.params

bench: $(STAMP) ## measurements as ratios, into bench.json
	python -m tests.bench

# Torch and all else that the peers share is taken from .venv; a virtual environment sees the folders that a .pth names.
$(PEERS)/.installed: tests/peers/requirements.txt $(STAMP)
	python -m venv --without-pip $(PEERS)
	python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	python -m pip --disable-pip-version-check --python $(PEERS)/bin/python install --quiet --no-deps --requirement $<
	touch $@

bench-peers: $(PEERS)/.installed ## against open_clip's trainer, clip-benchmark and the released loop, into bench_peers.json
	python -m tests.peers

bench-gpu: $(STAMP) ## what one CUDA device makes of it, in eight minutes, into bench_gpu.json and .md
	python -m tests.bench_gpu

ablate: $(STAMP) ## run every ablation on top of params.yaml (SEEDS=0..2 RATES=2e-5,5e-5 ONLY=contrastive,hycd)
	python -m pipeline_lib.compare queue --seeds '$(or $(SEEDS),0)' --rates '$(RATES)' --only '$(ONLY)'

ui: $(STAMP) ## the MLflow UI on http://127.0.0.1:5000 (takes half a minute to start)
	@python -m pipeline_lib.lineage ui

clean: ## remove outputs and checkpoints, keep .venv, the DVC cache and mlflow.db
	rm -rf data/base data/base.parameters.json data/shards data/shards.parameters.json data/language \
	  data/teacher data/pixels \
	  data/refined data/eval data/report data/compare .checkpoints
