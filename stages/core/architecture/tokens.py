"""The special tokens of a model."""

from typing import Any


def end_tokens(model: Any) -> list[int]:
    """Every token at which a model ends a text, those of config.json first; empty where it has none.

    A token beyond the vocabulary is only the default of the config class, and is left out.
    """
    found: list[int] = []
    for config in (model.config, getattr(model, "generation_config", None)):
        ends = getattr(config, "eos_token_id", None)
        found += ends if isinstance(ends, list) else [] if ends is None else [ends]
    return [end for end in dict.fromkeys(found) if 0 <= end < getattr(model.config, "vocab_size", 0)]


# Special tokens that end a turn of a conversation. GGUF names one end token; llama.cpp finds these by their text.
TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>")


def add_turn_ends(model: Any, tokenizer: Any) -> None:
    """Add the tokens that end a turn to a model's end tokens, where its tokenizer has them as special tokens."""
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    model.config.eos_token_id = end_tokens(model) + [special[name] for name in TURN_ENDS if name in special]
    state_end_tokens(model)


def state_end_tokens(model: Any) -> None:
    """Write all end tokens into the model's config, which its variants inherit, and into its generation config."""
    ends = end_tokens(model)
    packed = ends if len(ends) > 1 else ends[0] if ends else None
    model.config.eos_token_id = packed
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = packed


def pad_token(model: Any) -> int:
    """The token that pads a row, which attention does not see: the model's first end token, or 0 where it has none.

    GPT-2 has no padding token of its own.
    """
    return (end_tokens(model) or [0])[0]
