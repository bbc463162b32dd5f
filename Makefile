# The two commands of the README, and what they are made of. PYTHON=… chooses the interpreter.

PYTHON ?= python3
VENV   := .venv
PYTEST := $(VENV)/bin/python -m pytest

.PHONY: demo test install bindings benchmark clean

demo: ## build everything and answer a first prompt
	@$(PYTHON) -m distribution.install --venv $(VENV)
	@$(VENV)/bin/python -m distribution.demo

test: ## build everything and run the tests
	@$(PYTHON) -m distribution.install --venv $(VENV) --extra test
	$(PYTEST) $(ARGS)

install: ## build and install into $(VENV), editable
	@$(PYTHON) -m distribution.install --venv $(VENV)

bindings: ## generate llama_cpp/capi anew from the engine's headers
	@$(PYTHON) -m distribution.install --venv $(VENV) --extra bindings
	$(VENV)/bin/python tools/generate_bindings.py

benchmark: ## measure what README and docs quote
	$(VENV)/bin/python benchmarks/import_time.py

clean: ## remove everything that was built here
	rm -rf build dist $(VENV) vendor/llama.cpp/source vendor/llama.cpp/.source-*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
