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
from stages.core.settings.surgeries import Collapse, Share
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
_WIDE_HEADS = {**_LLAMA, "head_dim": 12}
_GPT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
# Tied and untied embeddings, FFNs with and without biases and gates, attention with and without biases.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gpt_neo": {
        "hidden_size": WIDTH,
        "num_layers": LAYERS,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2], [["local"], 1]],
        "window_size": 4,
        "max_position_embeddings": POSITIONS,
    },
    "gptj": {**_GPT, "rotary_dim": 4},
    "starcoder2": {**_LLAMA, "sliding_window": 6},
    "gpt_neox": {**_LLAMA, "rope_parameters": _PARTIAL},
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4},
    "falcon": {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    },
    "opt": {**_LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 24, "tie_word_embeddings": True},
    "phi": {**_LLAMA, "rope_parameters": _PARTIAL},
    "phi3": {**_LLAMA, "sliding_window": 6},
    "llama": {**_LLAMA, "tie_word_embeddings": True, "mlp_bias": True},
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _WIDE_HEADS,
    "stablelm": {**_LLAMA, "rope_parameters": _PARTIAL},
    "cohere": {**_LLAMA, "tie_word_embeddings": True},
    "gemma": {**_WIDE_HEADS, "tie_word_embeddings": True},
    "smollm3": {**_LLAMA, "no_rope_layers": [1, 0, 1, 1, 0]},
    "granite": {**_LLAMA, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 3.0},
    "gemma2": {**_WIDE_HEADS, "sliding_window": 6},
    "gemma3_text": {
        **_WIDE_HEADS,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
        "tie_word_embeddings": True,
    },
    "olmo2": _LLAMA,
}
# Other configs of a family that change its modules or what its blocks add.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2 numbered": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False}),
    "gpt_neox in turn": ("gpt_neox", {"use_parallel_residual": False}),
    "bloom normed": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "falcon new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon in turn": ("falcon", {"parallel_attn": False, "alibi": True}),
    "opt normed after": ("opt", {"do_layer_norm_before": False}),
    "opt without biases": ("opt", {"enable_bias": False, "word_embed_proj_dim": WIDTH}),
    "llama without biases": ("llama", {"mlp_bias": False, "attention_bias": True}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "stablelm parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "cohere normed": ("cohere", {"use_qk_norm": True}),
    "phi normed": ("phi", {"qk_layernorm": True}),
}
# What holds for the algebra of FFNs holds for these; `test_families` runs every family.
every_family = pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2"])


def model(name: str, seed: int = 0, **options: Any) -> Any:
    """A model in evaluation mode with all parameters drawn anew, norms about 1, all else about 0."""
    name, more = VARIANTS.get(name, (name, {}))
    config = AutoConfig.for_model(name, **{**_COMMON, **CONFIGS[name], **more, **options})
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


def moved(known: Calibration, device: Any) -> Calibration:
    """A calibration whose tensors lie on `device`."""

    def there(found: dict[str, Moments]) -> dict[str, Moments]:
        return {site: Moments(m.mean.to(device), m.second.to(device)) for site, m in found.items()}

    return Calibration(
        lambda *asked: known.permutation(*asked).to(device),
        lambda layer: there(known.moments(layer)),
        lambda: [batch.to(device) for batch in known.text()],
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
