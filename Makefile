# make deploy backend=redis, make test; the rest: make help.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

inventory ?= inventory/local.yml
JOBS ?= $(shell nproc)
export JOBS
# Tests of servers wait for much of their time: for deadlines, restarts, results that expire.
at_once = $(shell echo $$(($(JOBS) * 2)))
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/.uv/bin:$(PATH)
# Half of the start of every Ansible command is compiling it, unless Python may keep the bytecode.
unexport PYTHONDONTWRITEBYTECODE
# uv trusts the authorities that the machine trusts, and the package index that pip is told of.
export UV_NATIVE_TLS := 1
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)

# A distribution's Python is built with profile-guided optimisation; one from elsewhere often is not, and takes a
# sixth longer.
python := $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)

.PHONY: help deploy test deps lint unit integration engine images molecule lock clean
help: ## Show this list
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

deploy: .venv/.controller ## Provision, configure and prove: make deploy backend=redis [inventory=...]
	@ansible-playbook -i $(inventory) site.yml $(if $(backend),-e backend=$(backend)) $(if $(broker),-e broker=$(broker))

test: deps engine ## Everything that CI runs
	@$(MAKE) --jobs=3 --output-sync=target lint unit images
	$(MAKE) integration
	$(MAKE) molecule

deps: .venv/.dev ## Build .venv with the locked tools

# Debian splits ensurepip from Python; a fresh machine has neither it nor a virtual environment.
.uv/bin/uv: requirements/uv.txt
	@$(python) -c 'import ensurepip' 2>/dev/null || tools/python-venv
	$(python) -m venv --clear .uv
	.uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@
.venv/bin/python: | .uv/bin/uv
	@uv venv --quiet --allow-existing --no-python-downloads --python $(python) .venv
.venv/.controller: requirements/controller.txt | .venv/bin/python
	@uv pip install --quiet --python .venv --require-hashes -r $<
	touch $@
.venv/.dev: requirements/dev.txt | .venv/bin/python
	@uv pip install --quiet --python .venv --require-hashes -r $<
	touch $@ .venv/.controller

lint: deps ## yamllint, ansible-lint (production), ruff, mypy (strict), shellcheck
	@yamllint --strict .
	ansible-lint --offline -q
	ruff check .
	ruff format --check .
	mypy
	tools/shellcheck-all

unit: deps ## Tests that need no server and no host
	@pytest tests/unit

integration: deps ## Tests of the Python package against real servers on loopback
	@tools/test-servers
	pytest tests/integration --numprocesses=$(at_once) --dist=loadfile --no-loadscope-reorder --instafail --timeout=300

engine: ## A Docker engine: started here where none answers
	@tools/docker-engine
images: engine ## The images of molecule's hosts
	@tools/images
molecule: deps images ## Every scenario on every release; one scenario: make molecule-redis
	@tools/molecule-runner
molecule-%: deps images
	@tools/molecule-runner $*

lock: .uv/bin/uv ## Resolve requirements/*.in into the hash-locked requirements/*.txt
	@tools/lock-requirements

clean: ## Remove this checkout's containers, caches and tools
	@tools/molecule-runner --clean || true
	rm -rf .venv .uv .cache
