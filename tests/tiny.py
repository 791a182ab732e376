"""Tiny models of every supported family, none of whose parameters has a value that could hide a mistake."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from stages.core.architecture import ffn
from stages.core.architecture.view import ModelView
from stages.core.calibration.moments import Moments
from stages.core.calibration.statistics import Calibration
from stages.core.forms import checkpoint, counting
from stages.core.forms import dense as dense_form
from stages.core.settings.variants import Collapse, Share
from stages.core.shrinking import operations
from stages.core.tasks.language import Language

torch.set_num_threads(1)

VOCABULARY, WIDTH, LAYERS, POSITIONS = 97, 32, 5, 64
GROUPS = [[0, 1, 2], [3, 4]]
TASK = Language(context=12, stride=12, batch_size=4)

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
_LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}
# Tied and untied embeddings, FFNs with and without biases and gates, attention with and without biases.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS},
    "llama": {**_LLAMA, "tie_word_embeddings": True, "mlp_bias": True},
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 12},
    "gemma": {**_LLAMA, "head_dim": 12, "tie_word_embeddings": True},
    "gemma2": {**_LLAMA, "head_dim": 12, "sliding_window": 6},
    "gemma3_text": {**_LLAMA, "head_dim": 12, "sliding_window": 6, "tie_word_embeddings": True},
}
every_family = pytest.mark.parametrize("name", CONFIGS)


def model(name: str, seed: int = 0, **options: Any) -> Any:
    """A model in evaluation mode with all parameters drawn anew, norms about 1, all else about 0."""
    config = AutoConfig.for_model(name, **{**_COMMON, **CONFIGS[name], **options})
    built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in built.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = key.endswith("weight") and parameter.ndim == 1
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.2 * noise)
    return built.eval()


def view(built: Any) -> ModelView:
    return ModelView(built)


def family(built: Any) -> Any:
    return view(built).family


def operate(built: Any, *rest: Any) -> tuple[Any, Any]:
    """`operations.operate` on a model, and a model."""
    changed, sharing = operations.operate(view(built), *rest)
    return changed.model, sharing


def save(built: Any, sharing: Any, folder: Any) -> None:
    checkpoint.save(view(built), sharing, folder)


def load(folder: Any) -> tuple[Any, Any]:
    """The model of a checkpoint, and its Sharing."""
    loaded, sharing = checkpoint.load(folder)
    return loaded.model, sharing


def count(built: Any, *sharing: Any) -> dict[str, int]:
    return counting.count(view(built))


def dense(built: Any) -> Any:
    return dense_form.to_dense(view(built))


def ids(rows: int = 2, length: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(built: Any, text: Tensor | None = None) -> Tensor:
    return built(ids() if text is None else text, use_cache=False).logits


def gap(a: Any, b: Any) -> float:
    """The largest difference between two models' logits."""
    return (logits(a) - logits(b)).abs().max().item()


def state(built: Any) -> dict[str, Tensor]:
    """A copy of every parameter under every name it has."""
    return {key: value.detach().clone() for key, value in built.named_parameters(remove_duplicate=False)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two mappings hold bitwise equal tensors under equal names."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def shuffle(width: int, seed: int) -> Tensor:
    return torch.randperm(width, generator=torch.Generator().manual_seed(seed))


def moments(width: int, seed: int) -> Moments:
    """Moments of as many random rows as make them positive definite, with a mean."""
    rows = torch.randn(3 * width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Moments((rows + 0.5).mean(0), (rows + 0.5).T @ (rows + 0.5) / len(rows))


def calibration(built: Any) -> Calibration:
    """A permutation for every pair of layers, another for each, and moments of random rows."""
    width = view(built).neurons(0)
    return Calibration(
        lambda alignment, reference, first, other: shuffle(width, 100 * first + other),
        lambda layer: {"input": moments(WIDTH, layer), "hidden": moments(width, 50 + layer)},
        lambda: [ids(8, seed=seed) for seed in range(4)],
    )


def twins(name: str, alike: str) -> Any:
    """A model whose FFNs are all the first layer's: `equal`, or `shuffled` so that `calibration` undoes it."""
    built = model(name)
    first = view(built).read(0)
    for group in GROUPS:
        for layer in group:
            order = calibration(built).permutation("cost", "first", group[0], layer).argsort()
            apart = alike == "shuffled" and layer != group[0]
            view(built).write(layer, ffn.permute(first, order) if apart else first)
    return built


def share(rank: int = 0, **changes: Any) -> Share:
    """A specification of sharing; a rank above 0 brings deltas by SVD."""
    usual = {"alignment": "pre_activation", "reference": "first", "base": "mean", "delta": "svd" if rank else "none"}
    usual |= {"biases": "own", "repair": "none"}
    return Share(method="share", rank=rank, **{**usual, **changes})


def collapse(**changes: Any) -> Collapse:
    return Collapse(method="collapse", **{"alignment": "pre_activation", "base": "mean", "repair": "none", **changes})


def shared(name: str, rank: int = 0, **changes: Any) -> tuple[Any, Any]:
    """A model that shares the FFNs of GROUPS, and its Sharing."""
    built = model(name)
    return operate(built, GROUPS, calibration(built), share(rank, **changes))
