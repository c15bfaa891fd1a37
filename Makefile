# VESSA. `make help` lists the targets; each installs what it needs.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := proto services/vessa_common services/vessa_server services/ssl_trainer

.DEFAULT_GOAL := help
.PHONY: help install demo serve test lint format proto docs containers redis clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP) ## Create .venv and install everything

# torch first and sam2 without build isolation: sam2's build asks for torch, and its isolated
# build would download another copy. Its CUDA extension is optional and not used.
$(STAMP): constraints.txt pyproject.toml $(addsuffix /pyproject.toml,$(PACKAGES))
	@echo "Installing into $(VENV), once: PyTorch is about 6 GB; a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip "setuptools<82" wheel
	$(BIN)/pip install --quiet -c constraints.txt torch torchvision
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet -c constraints.txt --no-build-isolation "sam2>=1.1,<2"
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation \
		$(addprefix -e ,$(PACKAGES)) --group dev
	touch $(STAMP)

demo: install ## The whole system on a small real sample: table and pictures
	$(BIN)/python examples/demo.py

serve: install ## Start a server on this machine
	$(BIN)/vessa-server serve

# A file's tests stay together, and the slow ones, which come first, do not wait for the others.
test: install redis ## Run all tests, on all cores
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: install ## Check format, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: install ## Generate the code of the wire contract
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto/src --pyi_out=proto/src \
		--grpc_python_out=proto/src proto/vessa/v1/pseudo_label.proto

# In an environment of its own: it takes neither PyTorch nor the packages.
DOCS_ENV := outputs/docs-env
$(DOCS_ENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS_ENV)
	$(DOCS_ENV)/bin/pip install --quiet --upgrade pip
	$(DOCS_ENV)/bin/pip install --quiet --group docs
	touch $@

docs: $(DOCS_ENV)/.installed ## Build the documentation as a site in outputs/site
	NO_MKDOCS_2_WARNING=1 $(DOCS_ENV)/bin/mkdocs build --strict --quiet
	@echo "Open outputs/site/index.html"

COMPOSE ?= docker compose
ENGINE ?= docker
containers: ## Build the containers, use them, break them (takes Docker, or COMPOSE and ENGINE)
	$(PYTHON) benchmarks/containers.py --compose "$(COMPOSE)" --engine "$(ENGINE)" $(CHECK)

redis:
	@command -v redis-server >/dev/null || { \
		echo "The tests need redis-server: installing it"; \
		if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq redis-server >/dev/null; \
		else sudo apt-get update -qq && sudo apt-get install -y -qq redis-server >/dev/null; fi; }

clean: ## Remove the environment and all outputs
	rm -rf $(VENV) outputs gpu/.work .mypy_cache .ruff_cache .pytest_cache .hypothesis
