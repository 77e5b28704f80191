# make demo   builds int4kv into .venv, and shows both bundled models with the fp and the int4 cache
# make test   runs every test: kernels, cache, generation on three transformers versions, quality, builds
# Both set up what they need; a second run is quick. PYTHON and TORCH can be set: make test PYTHON=python3.12 TORCH=2.14.0

PYTHON ?= python3
TORCH  ?= 2.13.0
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check
OLDER  := 4.57.6 5.0.0

SOURCES := setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h)

.PHONY: demo test test-older build clean
demo: build
	$(VENV)/bin/int4kv demo

test: build $(VENV)/.test
	$(PY) -m pytest -n 2 --dist worksteal
	$(MAKE) --no-print-directory test-older

# The Hugging Face layer again, on the oldest transformers of each major version that is supported.
test-older: $(OLDER:%=$(VENV)/transformers-%/.done)
	@set -e; for version in $(OLDER); do \
	  echo "== transformers $$version"; \
	  PYTHONPATH=$(VENV)/transformers-$$version EXPECTED_TRANSFORMERS=$$version \
	    $(PY) -m pytest -n 2 --dist worksteal -p no:cacheprovider tests/test_generate.py tests/test_architectures.py tests/test_patching.py; \
	done

build: $(VENV)/.built

$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "int4kv needs Python 3.10 or newer; set PYTHON=..."; exit 1; }
	@command -v c++ > /dev/null || { echo "int4kv needs a C++20 compiler: apt-get install g++, or xcode-select --install"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==$(TORCH) setuptools wheel ninja pybind11 numpy
	@touch $@

$(VENV)/.built: $(VENV)/.base $(SOURCES)
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.built
	$(PIP) pytest pytest-timeout pytest-xdist hypothesis cmake
	@touch $@

$(VENV)/transformers-%/.done: $(VENV)/.test
	$(PIP) --no-compile --target $(@D) --upgrade transformers==$*
	@touch $@

clean:
	rm -rf $(VENV) build int4kv/*.so int4kv/_build.py *.egg-info
