# Every target sets up what it needs: .venv with the pinned dependencies and an editable install. The native
# library is built by its first user, so nothing here compiles.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The sanitizers' runtime must be loaded before everything else, and libstdc++ with it: AddressSanitizer looks
# for __cxa_throw when it starts. GCC, because Clang keeps its runtime elsewhere.
SANITIZER_CXX ?= g++
SANITIZER = PA_HP_SANITIZE=1 PA_HP_CXX=$(SANITIZER_CXX) \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$($(SANITIZER_CXX) -print-file-name=libasan.so) $$($(SANITIZER_CXX) -print-file-name=libstdc++.so)"
# mypy names the package after its directory, which need not be called pa_hp; so it looks through a link.
TYPED := $(addprefix pa_hp/,__main__.py build.py ops tiling bench kernels)

VNPU = TASK_QUEUE_ENABLE=0 $(BIN)/python -m pa_hp vnpu --devices 2 -- python -m pytest tests/npu_device
ASAN_TESTS := $(wildcard $(foreach name,asan decode errors fuzz property,tests/test_$(name).py))

.PHONY: demo test lint test-asan test-sim-full test-npu bench clean

# Tests run in so many processes, those that measure time afterwards and alone.
JOBS ?= 2

demo: $(STAMP)
	$(BIN)/python -m pa_hp demo

test: $(STAMP)
	$(BIN)/pytest -n $(JOBS) -m 'not full and not alone'
	$(BIN)/pytest -m alone

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd $(VENV) && ln -sfn .. pa_hp && bin/mypy --config-file ../pyproject.toml $(TYPED)
	git ls-files '*.cpp' '*.h' '*.inl' 'kernels/npu/*.cce' | xargs $(BIN)/clang-format --dry-run -Werror

# The NPU kernel on the modelled chip: every shape, many schedules, every synchronisation left out.
test-sim-full: $(STAMP)
	$(BIN)/pytest tests/npu -n $(JOBS) -m 'full or not full'

test-asan: $(STAMP)
	$(SANITIZER) $(BIN)/python -m pytest -n $(JOBS) $(ASAN_TESTS)

# Task queue off: a failing operator raises where it is called, and the tests after it are not harmed.
test-npu: $(STAMP)
	@if reason=$$($(BIN)/python -c 'import sys; from pa_hp.kernels.sim import vnpu; sys.exit(vnpu.refusal())' 2>&1); \
	then $(VNPU) -n $(JOBS) -m 'not alone' && $(VNPU) -m alone; \
	else echo "NPU tests skipped: $$reason"; fi

bench: $(STAMP)
	$(BIN)/python -m pa_hp bench

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

# A half-made environment (python without ensurepip leaves one) has no pip and is made anew.
$(STAMP): pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $@
