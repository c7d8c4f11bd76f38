# Everything runs in .venv with pinned versions; the first target to need it builds it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread each: two thread pools on two cores are several times slower. Compiled files are kept, whatever the
# environment says: every process of a test would compile opmix anew.
# Searches write files and wait until they are on disk: in memory where there are 8 GB for it.
SHM := $(shell df --output=avail -BG /dev/shm 2>/dev/null | tr -dc '0-9\n' | tail -n 1)
TEMP := $(if $(filter-out 0 1 2 3 4 5 6 7,$(SHM)),PYTEST_DEBUG_TEMPROOT=/dev/shm)
PYTEST := $(TEMP) PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadfile

SMOKE := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python benchmarks/kill_and_resume.py --kills 2 --fresh

.DEFAULT_GOAL := help
.PHONY: help install demo test unit slow test-cluster gpu-check matrix consumers release-check sbom bench smoke same-bytes torture docs check format lint types fix clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## Build .venv with pinned versions (LOCKED=1: all but torch with pinned hashes, as CI does)

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifdef LOCKED
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r constraints.lock
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
else
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[demo,dev,discover,gguf,tensorboard]' -c constraints.txt
endif
	@touch $@

demo: install ## The main job on real text, with a report to look at (DEMO="--out DIR --seed N")
	$(BIN)/opmix demo $(DEMO)

test: check slow ## Everything: format, lint, types, layers, unit, contract, doctests, slow tests

check: install format lint types unit ## What a commit must pass

format:
	$(BIN)/ruff format --check .

lint:
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

unit: install ## Fast tests (tests/unit, tests/contract, examples in docstrings)
	$(PYTEST) -m "not slow" tests --ignore=tests/integration --ignore=tests/browser

# Files in their own order: by number of tests, those of few long tests would all come last, on one worker.
slow: install ## Whole searches, lives and trainings (tests/integration), and what else takes more than a few seconds
	$(PYTEST) --no-loadscope-reorder -m "slow and not cluster" tests

test-cluster: install ## Many processes: slots and ranks, killed and begun again (minutes; one test at a time)
	$(PYTEST) -n 0 -m cluster tests

matrix: install ## Fast tests under other kernels, threads and package versions (LEGS="default-1 oldest" TESTS="tests/unit/mixing" SLOW=1)
	$(BIN)/python .ci/matrix.py $(LEGS) $(if $(SLOW),--slow) $(if $(TESTS),--tests $(TESTS))

SMOKES := lifecycle instruction compare targets
.PHONY: $(SMOKES:%=smoke-%)

smoke: install ## Three small lives and a comparison (examples/smoke), each killed and resumed: same bytes as unbroken
	$(MAKE) --output-sync -j 2 $(SMOKES:%=smoke-%)

$(SMOKES:%=smoke-%): smoke-%:
	$(SMOKE) examples/smoke/$*.yaml --out runs/smoke/$*

gpu-check: install ## What opmix rests on, tried on this machine's GPU; facts in runs/gpu-check/gpu-check.json (GPU="--only bf16,probes")
	$(BIN)/python benchmarks/gpu_check.py $(GPU)

bench: install ## Every speed as a ratio to its anchor, in one run; fails where one got much worse (BENCH="--only laws --repeats 3 --update")
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python benchmarks/bench.py $(BENCH)

same-bytes: install ## The smoke runs of BASE (a commit; default HEAD~1) and of HEAD: same bytes (SAME="--only lifecycle --keep DIR")
	$(BIN)/python benchmarks/same_bytes.py $(or $(BASE),HEAD~1) $(SAME)

torture: install ## Crashes, kills, random problems, fuzzing, locks, each counted (TORTURE=short|whole|long SEED=n PARTS="fuzz locks"; whole: 20 minutes)
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python benchmarks/torture --scale $(or $(TORTURE),whole) $(if $(SEED),--seed $(SEED)) $(if $(PARTS),--only $(PARTS))

docs: install ## The documentation as a site in site/, looked at by axe-core; then its notebooks (installs the extra `docs`)
	$(BIN)/python -m pip install --quiet -e '.[docs]' -c constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	OPMIX_SITE=site $(PYTEST) -n 0 -rs tests/browser/test_site.py
	$(PYTEST) --dist load tests/test_notebooks.py

fix: install ## Format and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

consumers: install ## Tests with other projects' packages in a venv of their own (CONSUMED="wandb litdata" TESTS="tests/unit/trackers")
	TESTS="$(TESTS)" .ci/consumers $(CONSUMED)

release-check: install ## Wheel and sdist built, checked, and the wheel tried in an empty environment with the demo (minutes)
	PYTHON=$(BIN)/python .ci/release

sbom: install ## What .venv holds as CycloneDX, in dist/sbom.json (in an environment of its own)
	$(PYTHON) -m venv .sbom
	.sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom
	mkdir -p dist && .sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/sbom.json $(BIN)/python

clean: ## Remove caches, not .venv
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .sbom build dist site
