# make demo       trains the base loss and JOL side by side on generated scenes, some minutes on a CPU
# make test       lint, types and tests
# make test-all   the slow tests too, and the C passes under sanitizers
# make test-frameworks   the integrations of frameworks, each in an environment of its own
# make lock       writes constraints.txt anew from the newest versions

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all test-frameworks sanitize lint lock clean

demo: $(STAMP)
	$(BIN)/jol demo

# Two files at a time, each with one thread, are faster than one with two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test: lint
	$(PYTEST) -m "not slow"
	JOLKERNELS_NATIVE=0 $(PYTEST) -m "kernels and not slow" tests/loss
	TRITON_INTERPRET=1 $(PYTEST) -m "kernels and not slow" tests/loss

test-all: lint sanitize
	$(PYTEST)
	JOLKERNELS_NATIVE=0 $(PYTEST) -m kernels tests/loss
	TRITON_INTERPRET=1 $(PYTEST) -m kernels tests/loss
	JOLKERNELS_TEST_COMPILED=1 $(PYTEST) -m "kernels and not slow" tests/loss

# What tests/integrations/NAME.txt asks for; torch and the rest are borrowed from $(VENV).
FRAMEWORKS := lightning mmdet transformers ultralytics

test-frameworks: $(FRAMEWORKS:%=build/%/.installed)
	for name in $(FRAMEWORKS); do \
		OMP_NUM_THREADS=1 build/$$name/bin/python -m pytest -n 2 tests/integrations/test_$$name*.py || exit; \
	done

build/%/.installed: tests/integrations/%.txt $(STAMP)
	$(BIN)/python -m venv --clear build/$*
	for site in build/$*/lib/python*/site-packages; do realpath $(VENV)/lib/python*/site-packages > $$site/borrowed.pth; done
	build/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# The package built once more, with checks of every access and conversion in C.
SANITIZED := build/sanitized
SANITIZE := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all

sanitize: $(STAMP)
	CFLAGS="$(SANITIZE)" $(BIN)/python setup.py --quiet build --force \
		--build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=$(SANITIZED)/lib OMP_NUM_THREADS=1 \
		$(BIN)/pytest -s $(addprefix tests/loss/test_,native.py dense_native.py dense_bfloat16.py native_numbers.py \
			out_of_bounds.py loss_edges.py fuzz.py::test_a_sample_of_everything)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard jolkernels/cpu/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[detectors,dev]"
	touch $@

lock:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[detectors,dev]"
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info jolkernels/cpu/*.so
