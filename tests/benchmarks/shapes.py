"""The models that are measured: shapes with random weights, and the bundled one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from stages.core.architecture import opening
from stages.core.architecture.view import ModelView

TOKENS = 4000
GPT2 = "GPT-2 small's shape, 4,000 tokens"


def gpt2(**changes: Any) -> ModelView:
    return _random("gpt2", **changes)


def smollm2() -> ModelView:
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    return _random("llama", **sizes, **heads, max_position_embeddings=2048)


def small() -> ModelView:
    return ModelView(opening.open_snapshot(Path("data/model")))


def _random(name: str, **changes: Any) -> ModelView:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, bos_token_id=0, eos_token_id=None, pad_token_id=None, **changes)
    return ModelView(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())


def text(view: ModelView, rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, view.model.config.vocab_size, (rows, length), generator=generator)


def batches(view: ModelView, tokens: int = TOKENS, length: int = 1000) -> list[Tensor]:
    return [text(view, 1, length, seed) for seed in range(tokens // length)]


def activations(layers: int, width: int = 3072, tokens: int = TOKENS, batch: int = 1000) -> list[list[Tensor]]:
    """Batches of the activations of several layers, which have a part of their causes in common, in another order."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    orders = [torch.randperm(width, generator=generator) for _ in range(layers)]
    mix = draw(width // 4, width) / (width // 4) ** 0.5
    found = []
    for _ in range(tokens // batch):
        shared = draw(batch, width // 4) @ mix
        found.append([(shared + draw(batch, width // 4) @ mix.roll(layer, 1))[:, o] for layer, o in enumerate(orders)])
    return found
