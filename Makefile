# layerstore: everything a newcomer needs, from a fresh clone.
# Needs python3 (3.11 or newer) with venv and headers, gcc and make; the rest comes by pip.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2
CORPUS ?=
SECTIONS ?=
TIME   ?= 60
CSRC   := $(wildcard csrc/*.c csrc/*.h csrc/*/*.c csrc/*/*.h)
TYPED  := -p layerstore -p benchmarks

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build demo test sanitize lint format fuzz bench bench-quick clean

help: ## What can be done (this list)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# The environment is made once and again when its description changes; the extension is built again
# when a C file changes. editable_mode=compat is a plain path in a .pth: the default imports a finder
# at every start of Python, which costs more than our own --help; setuptools 84 still has it.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=24" "setuptools>=77,<85" "wheel>=0.44" "cffi>=1.17"
	$(BIN)/python -m pip install -q --no-build-isolation --config-settings editable_mode=compat -e ".[dev]"
	@touch $@

$(VENV)/.built: $(VENV)/.installed setup.py layerstore/core/_build.py $(CSRC)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

build: $(VENV)/.built ## A virtual environment in .venv with layerstore, built, and all tools

demo: build ## The main job on real images: import, what each costs, export, compare, remove, gc
	$(BIN)/python examples/demo.py

test: build ## The whole test suite (ARGS="tests/core -k tar" for a part of it)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: build ## ruff, mypy --strict, clang-format: nothing is changed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy $(TYPED)
	$(BIN)/mypy --strict examples/*.py examples/registry/*.py
	$(BIN)/clang-format --dry-run -Werror $(CSRC) tests/fuzz/*.c tests/core/*.c

format: build ## Puts Python and C into shape
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .
	$(BIN)/clang-format -i $(CSRC) tests/fuzz/*.c tests/core/*.c

# A copy, so that the build in place stays as it is. CPython leaks by design at exit: leaks are not
# looked for; everything else that the sanitizers know ends the run.
# The two files left out build their own program without sanitizers, which `make test` has run already.
sanitize: build ## The C machines under AddressSanitizer and UBSan, with their tests
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r csrc layerstore tests setup.py pyproject.toml README.md LICENSE build/sanitize/
	rm -f build/sanitize/layerstore/core/_layerstore.*
	cd build/sanitize && LAYERSTORE_SANITIZE=1 ../../$(BIN)/python setup.py -q build_ext --inplace
	cd build/sanitize && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc \
	  ../../$(BIN)/python -m pytest -p no:cacheprovider -n $(JOBS) tests/core \
	  --ignore=tests/core/test_models_zlib.py --ignore=tests/core/test_models_golazy.py \
	  tests/checkout/test_checkout_stacks.py tests/checkout/test_checkout_attacks.py

fuzz: build ## New seeds for the property tests, libFuzzer for the C machines where clang is: TIME=60
	@if cc=$$(command -v clang || command -v clang-14); then set -e; \
	  mkdir -p build/fuzz/corpus build/fuzz/seeds; \
	  for f in v7 oldgnu gnu ustar posix; do tar --format=$$f -cf build/fuzz/seeds/$$f.tar csrc tests/fuzz; done; \
	  for target in split_join deflate tree_apply respan streams; do \
	    mkdir -p build/fuzz/corpus/$$target; \
	    $$cc -g -O1 -std=c11 -Icsrc -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	      tests/fuzz/$$target.c csrc/*.c csrc/*/*.c -o build/fuzz/$$target; \
	    TMPDIR=$$(test -w /dev/shm && echo /dev/shm || echo /tmp) build/fuzz/$$target -max_total_time=$(TIME) -max_len=131072 -print_final_stats=1 \
	      -artifact_prefix=build/fuzz/ build/fuzz/corpus/$$target build/fuzz/seeds; \
	  done; \
	else echo "no clang: the property tests only"; fi
	@end=$$(( $$(date +%s) + $(TIME) )); while [ $$(date +%s) -lt $$end ]; do \
	  seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); echo "seed $$seed"; \
	  $(BIN)/python -m pytest -n $(JOBS) --hypothesis-seed=$$seed tests/core || exit 1; done

bench-quick: build ## Benchmarks on content that pip brings, without root, below two minutes
	$(BIN)/python -m benchmarks --quick

bench: build ## Benchmarks on a corpus: CORPUS=layout [SECTIONS=space,ingest,...], against the peers that are installed
	@test -n "$(CORPUS)" || { echo "make bench CORPUS=DIR (an OCI layout; benchmarks/make_corpus.sh makes one)" >&2; exit 2; }
	$(BIN)/python -m benchmarks --corpus "$(CORPUS)" $(if $(SECTIONS),--sections $(SECTIONS))

clean: ## Removes what was built, the virtual environment too
	rm -rf $(VENV) build dist demo-out bench-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f layerstore/core/_layerstore.*
