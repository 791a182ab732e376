"""No test needs a network, and every run draws the same examples."""

import os

from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("steady")
