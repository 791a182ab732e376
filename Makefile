# `make` lists the targets. Each makes the environment first, in .venv.
.DEFAULT_GOAL := help
.PHONY: help repro check models test test-hub bench verify export push quantise harness ablation curve
PYTHON ?= python3
JOBS ?= auto
RANK ?= 8
RECOVER ?= yes
SIZES ?= 0.95,0.9,0.8,0.7,0.6,0.5
TRAIN ?= no
SEEDS ?= 0
# On the command line or in the environment. It goes before the profile of params.yaml.
PROFILE ?=
ifneq ($(PROFILE),)
export SHARED_FFN_PROFILE := $(PROFILE)
endif
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

# The scripts in .venv/bin name the folder that they were installed in; `python -m` works wherever it is now.
INSTALLED := $(shell cat .venv/ready 2>/dev/null)
ifneq ($(INSTALLED),)
ifneq ($(INSTALLED),$(CURDIR))
$(info This folder was $(INSTALLED) when .venv was made: `make` works, the scripts in .venv/bin (dvc) do not.)
$(info To use them again: rm -r .venv && make check)
endif
endif

# A misspelt variable would be ignored: make SIZE=0.9 curve.
KNOWN := PYTHON JOBS PROFILE VARIANT TO FORM DTYPE REPO CONFIRM TASK WINDOW RANK RECOVER SIZES TRAIN SEEDS ONLY
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(word 1,$(origin $(name)))),$(name)))
UNKNOWN := $(filter-out $(KNOWN) MAKEFLAGS SHELL,$(GIVEN))
ifneq ($(UNKNOWN),)
$(error $(UNKNOWN) means nothing here; known are $(KNOWN))
endif

help: ## List what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

repro: .venv/ready ## Run the study (JOBS=2: two variants at a time; PROFILE=digits)
	@python -m stages.commands.repro --jobs $(JOBS)

check: .venv/ready ## Check params.yaml; show its defaults, memory, disk, time
	@python -m stages.commands.check

models: .venv/ready ## Fetch SmolLM2-135M and Gemma 3 270M into data/local/model
	@python -m stages.commands.models --to data/local/model

test: .venv/ready ## Run the tests
	python -m pytest -n auto --maxprocesses 4

test-hub: .venv/ready ## Run profiles gpt2 and smollm2, cut short, from a hub here
	python -m pytest -n 0 -m hub tests/test_hub_box.py

bench: .venv/ready ## Measure what is fast against peers and limits (ONLY=align)
	@python -m tests.benchmarks --only "$(ONLY)"

verify: .venv/ready ## Compare every file with its hash in dvc.lock
	@python -m stages.commands.verify

export: .venv/ready ## Write a checkpoint to take away: VARIANT=softshare FORM=shared
	@python -m stages.commands.export --variant "$(VARIANT)" --to "$(or $(TO),exported/$(VARIANT))" \
		--form "$(or $(FORM),dense)" --dtype "$(DTYPE)"

push: .venv/ready ## List what would go to a hub: VARIANT=softshare REPO=me/softshare
	@python -m stages.commands.push --variant "$(VARIANT)" --repo "$(REPO)" --form "$(or $(FORM),dense)" \
		--confirm "$(or $(CONFIRM),no)" --dtype "$(DTYPE)" --to "$(TO)"

# Once: .venv/bin/python -m pip install torchao==0.18.0
quantise: .venv/ready ## Measure a variant in 8 bits, dense and shared: VARIANT=softshare
	@python -m stages.commands.quantise --variant "$(VARIANT)" --to "exported/quantised/$(VARIANT).json"

# Once: .venv/bin/python -m pip install lm_eval==0.4.13
harness: .venv/ready ## Score by lm-evaluation-harness: VARIANT=softshare TASK=reviews
	@python -m stages.commands.harness --variant "$(VARIANT)" --task "$(TASK)" \
		--to "exported/harness/$(subst /,-,$(VARIANT:/=))-$(TASK).json"

ablation: .venv/ready ## Take a window apart: WINDOW=2-5 RANK=8 RECOVER=no
	@python -m stages.commands.ablate --window "$(WINDOW)" --rank "$(RANK)" --recover "$(RECOVER)" --to metrics/ablation

curve: .venv/ready ## Every method at several sizes: SIZES=0.9,0.8 TRAIN=0.8
	@python -m stages.commands.curve --sizes "$(SIZES)" --train "$(TRAIN)" --seeds "$(SEEDS)" --to metrics/curve

# Python compiles a module when it is first imported; to compile all 18,000 takes another minute.
.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check -q --no-compile -r requirements.txt
	@echo '$(CURDIR)' > $@
