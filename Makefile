# make demo   builds int4kv into .venv, and shows both bundled models with the fp and the int4 cache
# make test   runs every test: kernels, cache, generation on four transformers versions, quality, builds; and all of it again on
#             mps: on a Mac on its GPU, on Linux on the emulated device of tests/rig, beside the cross-compile of tests/macos
# Both set up what they need; a second run is quick. PYTHON and TORCH can be set: make test PYTHON=python3.12 TORCH=2.14.0

PYTHON ?= python3
TORCH  ?= 2.13.0
VENV   := .venv
PY     := $(VENV)/bin/python
# Python compiles what it imports, which is little of what is installed.
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
OTHER  := 4.57.6 5.0.0 5.23.0

HF_TESTS := $(patsubst %,tests/test_%.py,generate architectures patching conversion) tests/test_build.py::test_the_transformers_that_was_asked_for
TESTS_5.23.0 := $(patsubst %,tests/test_%.py,continuous_batching serve)

# Debian packages of the Metal rig, of the cross-compile for macOS, and of the emulation of other processors
TEST_PACKAGES := clang-19 libclang-rt-19-dev libgnustep-base-dev libblocksruntime-dev clang-22 lld-22 llvm-22 \
                 g++-aarch64-linux-gnu qemu-user libsimde-dev

# CUDA's compiler for run time and its headers: the kernels' and the host's source is compiled for CUDA where there is no GPU
CUDA_WHEELS := nvidia-cuda-nvrtc==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-crt==13.0.*

SOURCES := setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*.h csrc/*/* csrc/*/*/*)
LINUX := $(filter Linux,$(shell uname -s))

.PHONY: demo test test-other $(OTHER:%=test-with-%) test-mps test-cuda test-packages build clean
demo: build
	$(VENV)/bin/int4kv demo

test:
	$(MAKE) --no-print-directory -j2 $(if $(LINUX),test-packages) $(VENV)/.test $(OTHER:%=$(VENV)/transformers-%/.done)
	$(PY) -m pytest -n 2 --dist worksteal
	$(MAKE) --no-print-directory test-mps
	$(MAKE) --no-print-directory test-other

test-mps:
	$(PY) -m pytest -n 2 --dist worksteal --device mps

# On a machine with an NVIDIA GPU and a torch built for CUDA: the same suite on it.
test-cuda: $(VENV)/.test
	INT4KV_CUDA=1 $(PIP) --no-build-isolation --editable .
	$(PY) -m pytest -n 2 --dist worksteal --device cuda

test-packages:
	@missing=""; for p in $(TEST_PACKAGES); do dpkg -s $$p > /dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "the tests need:$$missing; run: sudo apt-get install$$missing"; exit 1; fi

# The Hugging Face layer again, on the oldest transformers of each major version that is supported and on the last before the cache's
# argument got its present name.
test-other: $(OTHER:%=test-with-%)

$(OTHER:%=test-with-%): test-with-%: $(VENV)/transformers-%/.done
	PYTHONPATH=$(<D) EXPECTED_TRANSFORMERS=$* $(PY) -m pytest -n 2 --dist worksteal -p no:cacheprovider $(HF_TESTS) $(TESTS_$*)

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
	$(PIP) pytest pytest-timeout pytest-xdist hypothesis cmake lm-eval accelerate openai fastapi uvicorn $(CUDA_WHEELS)
	@touch $@

$(VENV)/transformers-%/.done: $(VENV)/.test
	$(PIP) --target $(@D) --upgrade transformers==$*
	@touch $@

clean:
	rm -rf $(VENV) build int4kv/*.so int4kv/_build.py *.egg-info
