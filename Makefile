# Each target does all of its own set-up: a virtual environment in .venv, then what it needs in it.
# Another Python: make test PYTHON=python3.12. Newest versions of the test tools: make test CONSTRAINTS=

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$p && break; done)
CONSTRAINTS ?= .ci/constraints.txt
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .cache/clients
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL_TEST := $(PIP) install $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.DELETE_ON_ERROR:
.PHONY: help demo test check table llama-cpp test-serve test-evaluate test-ports test-train test-prebuilt test-arm test-pythons test-clients soak wheels lint types axe fuzz clean

help:
	@echo 'make demo    ask the small model that is in the box about the pictures that are in the box'
	@echo 'make test    lint, types and all tests but those that have a target of their own below (also: make check)'
	@echo 'make lint, make types    one of these alone'
	@echo 'make wheels  a wheel for x86-64, one for ARM, both with compiled kernels, and one without: dist/'
	@echo 'make test-serve    mvlm serve with its page in a browser, and mvlm watch'
	@echo 'make test-evaluate    mvlm evaluate and mvlm batch'
	@echo 'make test-ports    the model as ONNX graphs, and the verdicts on other runtimes'
	@echo 'make test-train    training: tools/finetune.py and what it is made of'
	@echo 'make test-prebuilt    the tests of the kernels, with the libraries of the wheels'
	@echo 'make test-arm    the kernels on emulated ARM processors; needs Debian or Ubuntu with qemu-user'
	@echo 'make test-pythons    the wheel on each Python from 3.11 to 3.14 that is here'
	@echo 'make axe     get axe-core, which looks at the page of mvlm serve in its tests; needs npm'
	@echo 'make test-clients    mvlm serve with the clients that people have: openai, ollama, llm, LangChain, litellm, curl'
	@echo 'make table   what 4 to 8 bits cost a trained model, in our formats and llama.cpp'"'"'s; needs llama-quantize'
	@echo 'make llama-cpp    llama.cpp from source, as it is and with the edits of docs/llama-cpp.md, and what each sees'
	@echo 'make soak    mvlm serve with 2,000 requests of all kinds: memory, threads and files stay as they are'
	@echo 'make fuzz    fuzz the readers of weight files and of requests to mvlm serve for twenty minutes'
	@echo 'make clean   remove the virtual environment and all caches'

demo: $(VENV)/.installed
	@mkdir -p .cache
	$(BIN)/mvlm demo --html .cache/demo.html
	@echo
	@echo 'The pictures, and where the model looked: .cache/demo.html'
	@echo 'This model knows drawn pictures only. For photos: $(BIN)/mvlm pull mtgv/MobileVLM_V2-1.7B'

SERVING := tests/serve tests/watch tests/cli/test_serve.py tests/cli/test_watch.py
EVALUATING := tests/evaluation tests/rows tests/cli/test_batch.py
PORTS := tests/export tests/ports $(addprefix tests/golden/test_,verdicts.py runtimes.py guide.py explain.py)
TRAINING := tests/training
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test: lint types
	$(PYTEST) $(addprefix --ignore=,$(SERVING) $(EVALUATING) $(PORTS) $(TRAINING))

test-serve: $(VENV)/.installed-test
	$(PYTEST) $(SERVING)

test-evaluate: $(VENV)/.installed-test
	$(PYTEST) $(EVALUATING)

test-ports: $(VENV)/.installed-test
	$(PYTEST) $(PORTS)

test-train: $(VENV)/.installed-test
	$(PYTEST) $(TRAINING)

check: test

wheels: $(VENV)/.installed-wheels
	rm -rf dist
	$(BIN)/python tools/wheels.py dist

# For this CPU, the kernels as the wheel has them; `make test` compiles them itself.
test-prebuilt: $(VENV)/.installed-wheels
	library=$$($(BIN)/python tools/wheels.py --library host | tail -1) && \
	MVLM_LIBRARIES=$$(dirname $$library) $(PYTEST) tests/kernels \
		--ignore tests/kernels/test_compile.py --ignore tests/kernels/test_dot_code.py \
		--ignore tests/kernels/test_arm.py --ignore tests/kernels/test_limits.py

test-arm: $(VENV)/.installed-wheels
	$(BIN)/python tools/arm.py test

test-pythons: $(VENV)/.installed-wheels
	$(BIN)/python tools/pythons.py test

# The clients have environments of their own: they are many, and none of them is ours. Home Assistant's and Frigate's
# openai is an old one.
test-clients: $(VENV)/.installed-test $(CLIENTS)/.installed
	MVLM_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)/bin/python -m pytest -p no:cacheprovider tests/clients
	MVLM_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)-old/bin/python -m pytest -p no:cacheprovider tests/clients/test_openai.py

soak: $(VENV)/.installed-test
	MVLM_SOAK=2000 $(BIN)/python -m pytest tests/serve/test_soak.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

AXE := .cache/axe/node_modules/axe-core/axe.min.js
axe: $(AXE)

$(AXE):
	npm install --prefix .cache/axe --no-save --ignore-scripts --no-audit --no-fund axe-core@4.14.1

# llama-quantize is taken from the folder that LLAMA_CPP names, or from the PATH.
table: $(VENV)/.installed-test .cache/real/smollm2-moved .cache/real/smollm2-wide
	$(BIN)/python tools/llama_cpp_formats.py .cache/real/smollm2-wide
	$(BIN)/python tools/llama_cpp_formats.py .cache/real/smollm2-moved --theirs --formats Q6_K Q5_K_M Q4_K_M

.cache/real/smollm2-moved: | $(VENV)/.installed-test
	$(BIN)/python tools/real_model.py $@ --off-grid

.cache/real/smollm2-wide: | $(VENV)/.installed-test
	$(BIN)/python tools/real_model.py $@ --off-grid --widen

# llama.cpp from source, twice, and what it makes of a picture: two cores build it in 12 minutes.
LLAMA := .cache/llama.cpp
LLAMA_MODELS := $(addprefix $(LLAMA)/models/,tiny tiny-ldp tiny-mlp)
llama-cpp: $(VENV)/.installed-llama $(LLAMA_MODELS)
	$(BIN)/python tools/llama_cpp_build.py $(LLAMA)
	$(BIN)/python tools/llama_cpp_vision.py $(LLAMA_MODELS) --source $(LLAMA)/source --libraries $(LLAMA)/stock $(LLAMA)/changed

$(LLAMA)/models/%: | $(VENV)/.installed-test
	rm -rf $@.new
	$(BIN)/python tools/make_checkpoint.py $* $@.new
	$(BIN)/python tools/make_golden.py $@.new tests/data/golden/picture.png "What is it?" $@.new/golden-0.safetensors --cases
	mv $@.new $@

fuzz: $(VENV)/.installed-test
	@$(INSTALL_TEST) -e '.[fuzz]' || echo 'atheris has no build for this machine: fuzzing without coverage guidance.'
	$(BIN)/python -m tests.fuzz --seconds 1200

$(VENV)/.installed-wheels: $(VENV)/.installed-test
	$(INSTALL_TEST) -e '.[wheels]'
	@touch $@

$(VENV)/.installed-llama: $(VENV)/.installed-test
	$(INSTALL_TEST) -e '.[llama]'
	@touch $@

$(CLIENTS)/.installed: .ci/clients.txt | $(BIN)/python
	$(BIN)/python -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install -r .ci/clients.txt
	$(BIN)/python -m venv $(CLIENTS)-old
	$(CLIENTS)-old/bin/python -m pip --disable-pip-version-check install 'openai==1.65.*' 'pytest>=8.2' 'hypothesis>=6.100'
	npm install --prefix $(CLIENTS) --no-save --ignore-scripts --no-audit --no-fund openai@6 ollama@0.6 \
		|| echo 'No npm: the clients in JavaScript are left out.'
	@touch $@

clean:
	rm -rf $(VENV) .cache .pytest_cache .hypothesis build dist mvlm_np.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'Python 3.11, 3.12, 3.13 or 3.14 is needed and none is on the PATH.' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { rm -rf $(VENV); \
		echo '$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Editable installs: a change of the code needs no new install, a change of pyproject.toml does.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL_TEST) -e '.[test]'
	@touch $@ $(VENV)/.installed
