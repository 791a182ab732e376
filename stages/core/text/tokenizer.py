"""The tokenizer of the model under study."""

from pathlib import Path
from typing import Any


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer that stage `base` wrote."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
