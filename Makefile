# `make repro` runs the study, `make test` the tests; every command makes the environment first.
.PHONY: repro check test verify export harness ablation
PYTHON ?= python3
JOBS ?= auto
RANK ?= 8
RECOVER ?= yes
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

# make repro JOBS=2 runs the chains of two variants at a time; without JOBS, as many as the machine has room for.
repro: .venv/ready
	python -m stages.commands.repro --jobs $(JOBS)

# make check says in a second what is wrong in params.yaml, its defaults, and what memory, disk and time it needs.
check: .venv/ready
	python -m stages.commands.check

test: .venv/ready
	pytest -n auto --maxprocesses 4

verify: .venv/ready
	python -m stages.commands.verify

# make export VARIANT=softshare TO=exported/softshare
export: .venv/ready
	python -m stages.commands.export --variant $(VARIANT) --to $(TO)

# make harness VARIANT=softshare TASK=reviews   (once: .venv/bin/pip install lm_eval==0.4.13)
harness: .venv/ready
	python -m stages.commands.harness --variant $(VARIANT) --task $(TASK) --to exported/harness/$(VARIANT).json

# make ablation WINDOW=2-5 RANK=8   (RECOVER=no: untrained arms only)
ablation: .venv/ready
	python -m stages.commands.ablate --window $(WINDOW) --rank $(RANK) --recover $(RECOVER) --to metrics/ablation

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.txt
	touch $@
