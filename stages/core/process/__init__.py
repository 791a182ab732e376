"""Files written whole or not at all, errors in one line, locks, devices, progress.

May import: nothing of this project.
"""

import os

# Libraries read these when they are imported, and every other room imports this one first.
#
# Models and data sets come from the folders and hub ids that params.yaml names; nothing is reported anywhere.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# A stage has one bar for each long loop of its own; those of the libraries ("Loading weights") say nothing of it.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
