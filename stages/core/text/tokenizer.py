"""The tokenizer of the model under study."""

from pathlib import Path
from typing import Any


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer that stage `base` wrote."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def start_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text: its start token, or nothing.

    Gemma, Llama 3 and Mistral were trained with one, and predict badly without it.
    """
    found = tokenizer("")["input_ids"][:1]
    return found if found == [tokenizer.bos_token_id] else []
