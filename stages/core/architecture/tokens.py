"""The special tokens of a model."""

from typing import Any


def end_tokens(model: Any) -> list[int]:
    """Every token at which a model ends a text, those of config.json first; empty where it has none.

    One beyond the vocabulary is a class's default, and none of this model.
    """
    found: list[int] = []
    for config in (model.config, getattr(model, "generation_config", None)):
        ends = getattr(config, "eos_token_id", None)
        found += ends if isinstance(ends, list) else [] if ends is None else [ends]
    return [end for end in dict.fromkeys(found) if 0 <= end < model.config.vocab_size]


def state_end_tokens(model: Any) -> None:
    """Put all end tokens into config.json's setting, from which variants are made, and into the generation config's."""
    ends = end_tokens(model)
    packed = ends if len(ends) > 1 else ends[0] if ends else None
    model.config.eos_token_id = packed
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = packed


def pad_token(model: Any) -> int:
    """What stands where a row has no token, hidden from attention: the model's first end token, 0 where it has none.

    GPT-2 has no padding token.
    """
    return (end_tokens(model) or [0])[0]
