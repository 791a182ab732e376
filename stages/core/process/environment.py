"""Environment variables that libraries read when they are imported. They are set before any room does so."""

import os

# Models and data sets come from the folders and hub ids that params.yaml names; nothing is reported anywhere.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# A stage has one bar for each long loop of its own; those of the libraries ("Loading weights") say nothing of it.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
