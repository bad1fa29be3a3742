# Everything a developer types. Each target installs what it needs; ARGS passes options on.

PYTHON ?= python3
VENV ?= .venv
REQUESTS ?= 100000
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
PIP_INSTALL := $(PIP) install
LOCK := uv pip compile --generate-hashes --no-header --no-annotate --universal --python-version 3.11
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= darktree:$(VERSION)
CONTEXT ?= .
# A docker without a daemon builds nothing.
BUILDER ?= $(notdir $(shell docker info >/dev/null 2>&1 && echo docker || command -v podman || command -v buildah))

.DEFAULT_GOAL := help
.PHONY: help install up test soak check format bench peers bench-peers openapi reference dashboards vectors vllm clients kube image sbom e2e lock clean

help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z0-9-]*:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv with everything that requirements.lock names (PYTHON=python3.x chooses which)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Darktree needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11' >&2; exit 1; }
	@echo 'Installing into $(VENV) (a minute the first time)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --require-hashes --no-deps -r requirements.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

up: install ## Serve everything on this machine (ARGS="--gateways 2 --port 9000")
	@$(BIN)/darktree up $(ARGS)

# Three at a time: most tests wait for processes that they start. What may not run at once: `CHAINS` in tests/conftest.py.
test: install ## Run every test (ARGS="tests/ledger -x")
	$(BIN)/python -m pytest --numprocesses 3 --no-loadscope-reorder $(ARGS)

soak: install ## Run what takes longer: payments' events in every order, rolling restarts, gateways for long (REQUESTS=1000000)
	SOAK=1 $(BIN)/python -m pytest --timeout 3000 -s tests/billing/test_payment_chaos.py tests/platform/test_rolling.py tests/platform/test_soak.py tests/ledger/test_openapi.py tests/billing/test_openapi.py tests/gateway/test_openapi.py $(ARGS)
	$(BIN)/python benchmarks/soak.py --requests $(REQUESTS)

check: install ## Lint, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## Measure what docs/benchmarks.md claims (ARGS passes options on)
	$(BIN)/python benchmarks/run.py $(ARGS)

peers: ## Install the proxies that bench-peers measures beside ours, each in a folder of .venv-peers (needs npm)
	bash scripts/peers-install.sh

bench-peers: install ## Measure Darktree beside nginx, vllm-router, Portkey and LiteLLM (ARGS="--quick"; make peers first)
	$(BIN)/python benchmarks/side_by_side.py $(ARGS)

openapi: install ## Write docs/openapi/ from the services' own code
	$(BIN)/python scripts/openapi.py

reference: install ## Write docs/reference.md: every setting and metric, from the code
	$(BIN)/python scripts/reference.py

dashboards: install ## Write charts/darktree/dashboards/ from their one source, dashboards/
	PYTHONPATH=dashboards $(BIN)/python -m darktree_dashboards charts/darktree/dashboards

vectors: install ## Write docs/ledger-vectors.json: examples of the ledger's format for other verifiers
	$(BIN)/python scripts/vectors.py

vllm: ## Make .venv-vllm, a real vLLM for a CPU (large: PyTorch comes with it)
	bash scripts/vllm-install.sh

clients: ## Install others' clients, which tests drive: OpenAI's for Node (needs npm), LangChain's, LlamaIndex's
	npm ci --prefix tests/clients --ignore-scripts --no-audit --no-fund
	@cmp --silent tests/clients/requirements.txt .venv-clients/.installed || { \
		$(PYTHON) -m venv --clear .venv-clients && echo '*' > .venv-clients/.gitignore \
		&& .venv-clients/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
			--require-hashes --no-deps --requirement tests/clients/requirements.txt \
		&& cp tests/clients/requirements.txt .venv-clients/.installed; }

kube: install ## Fetch helm and kubectl into build/bin, for the chart's tests
	$(BIN)/python scripts/kube_clients.py build/bin

image: ## Build the image with docker, podman or buildah, whichever is there (IMAGE=darktree:0.1.0)
	$(BUILDER) $(if $(findstring buildah,$(BUILDER)),build --layers,build) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$(shell git rev-parse HEAD) --tag $(IMAGE) $(ARGS) $(CONTEXT)

sbom: install ## Write build/sbom.json: everything in the image, as CycloneDX, from requirements.image.lock
	$(BIN)/python scripts/sbom.py build/sbom.json

e2e: install kube ## Run the story on the cluster that KUBECONFIG names (docs/install.md says what it needs)
	bash scripts/e2e.sh $(ARGS)

lock: ## Regenerate requirements.lock, the part of it that the image has, and the clients' (needs uv)
	$(LOCK) pyproject.toml --extra dev -o requirements.lock
	$(LOCK) pyproject.toml --constraint requirements.lock -o requirements.image.lock
	$(LOCK) tests/clients/requirements.in -o tests/clients/requirements.txt

clean: ## Remove the environment and every cache; not data
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .schemathesis
	find . -name __pycache__ -type d -prune -not -path './.venv*' -exec rm -rf {} +
