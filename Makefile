# The two commands of the README, and what they are made of. PYTHON=… chooses the interpreter.

PYTHON ?= python3
VENV   := .venv
PYTEST := $(VENV)/bin/python -m pytest

# Each would have Python import other things than what is here.
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH PYTHONINSPECT PYTHONOPTIMIZE PYTHONUSERBASE PYTHONWARNINGS
# `make -j demo test` would fill one virtual environment twice at once.
.NOTPARALLEL:

.PHONY: demo test lint format packages tools install bindings benchmark bench-packages clean

demo: ## build the packages for this machine, share them, make the environment, answer a first prompt
	@$(PYTHON) -m distribution.install --venv $(VENV) --tools
	@$(VENV)/bin/python -m distribution demo

test: ## build everything and run the tests
	@$(PYTHON) -m distribution.install --venv $(VENV) --extra test
	$(PYTEST) $(ARGS)

lint: ## check style and types, as CI does
	@$(PYTHON) -m distribution.install --venv $(VENV) --extra test --extra lint
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror native/*.cpp native/*.h

format: ## bring Python and C++ into the form that lint asks for
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i native/*.cpp native/*.h

packages: ## build the conda packages into dist/packages; ARCH=120 for an RTX 5090, ARCH=90, ARCH=cpu
	@$(PYTHON) -m distribution.install --venv $(VENV) --tools
	$(VENV)/bin/python -m distribution build --arch $(or $(ARCH),120)

tools: ## install what `python -m distribution` needs into $(VENV)
	@$(PYTHON) -m distribution.install --venv $(VENV) --tools

install: ## build and install into $(VENV), editable
	@$(PYTHON) -m distribution.install --venv $(VENV)

bindings: ## generate llama_cpp/capi anew from the engine's headers
	@$(PYTHON) -m distribution.install --venv $(VENV) --extra bindings
	$(VENV)/bin/python tools/generate_bindings.py

benchmark: ## measure what README and docs quote
	$(VENV)/bin/python benchmarks/import_time.py

bench-packages: ## what the packages cost: sizes, and times to publish, solve and install (BENCH=--build: to build, too)
	@$(PYTHON) -m distribution.install --venv $(VENV) --tools
	$(VENV)/bin/python benchmarks/packages.py --arch $(or $(ARCH),cpu) $(BENCH)

clean: ## remove everything that was built here: all that .gitignore names
	rm -rf build dist $(VENV) .tmp* llama_cpp/lib vendor/llama.cpp/source vendor/llama.cpp/.source-*
	find . -path ./.git -prune -o -type d \( -name __pycache__ -o -name .pytest_cache -o -name '*.egg-info' \) -prune -exec rm -rf {} +
	find . -path ./.git -prune -o -type f -name '*.py[co]' -exec rm -f {} +
