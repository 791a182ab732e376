# `make repro` runs the study, `make test` the tests; both make the environment first.
.PHONY: repro test export
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

repro: .venv/ready
	dvc repro

test: .venv/ready
	pytest

# make export VARIANT=softshare TO=exported/softshare
export: .venv/ready
	python -m stages.commands.export --variant $(VARIANT) --to $(TO)

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.txt
	touch $@
