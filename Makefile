# Every target makes .venv first if it is missing, half made, or older than the files that define it.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS ?= dev,docs,viz,video,classic,atari,mujoco,dmc,rpc
export OMP_NUM_THREADS ?= 1
# Ray starts a process for every core, so its tests are run alone; the others a file at a time side by side.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
INSTALLED := .venv/installed
# an unpacked sdist has the other two distributions beside it, which a checkout holds by itself
PARTS := $(if $(wildcard PKG-INFO),--editable ./worldloom --editable ./worldloom_client)
QUICK := not long and not gpu and not ray and not chaos

.PHONY: .venv demo lint test test-long check docs bench dist clean

.venv: $(INSTALLED)  ## the virtual environment alone

$(INSTALLED): pyproject.toml worldloom/pyproject.toml worldloom_client/pyproject.toml hatch_build.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("worldloom needs Python 3.11 or newer, this is %d.%d; run make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PARTS) --editable '.[$(EXTRAS)]'
	touch $@

demo: $(INSTALLED)  ## train TD-MPC2 on Pendulum-v1 through the distributed system, on this machine
	$(BIN)/python -m worldloom_dist.launch --preset quick

lint: $(INSTALLED)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(INSTALLED)  ## everything that guards a change, sixteen minutes on two cores
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "$(QUICK)"
	$(BIN)/python -m pytest -m "(ray or chaos) and not long and not gpu"

test-long: $(INSTALLED)  ## chaos rounds, learning curves, soak
	$(BIN)/python -m pytest -m "long" --timeout 5400

check: lint docs  ## what a commit must pass: style, format, types, the site, quick tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "$(QUICK) and not learn"

bench: $(INSTALLED)  ## run every benchmark; results go to benchmarks/results
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

docs: $(INSTALLED)  ## build the site strictly into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

dist: $(INSTALLED)  ## wheels and sdists of the three distributions into dist/
	for part in worldloom worldloom_client .; do $(BIN)/python -m build --outdir dist $$part || exit 1; done

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
