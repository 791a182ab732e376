"""Attention that stores no scores, where the library's own would.

In float32 on CUDA only one of torch's kernels does without the scores (heads x length^2 for each row, kept for the
backward pass), and it takes as many key heads as query heads. Grouped-query attention hands it fewer and falls back to
the kernel that stores them.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def register() -> None:
    """Have every model of the library repeat its keys and values where `stores_scores`; all else stays as it is."""
    from transformers.integrations import sdpa_attention
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    stock = sdpa_attention.sdpa_attention_forward

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        if stores_scores(query, key, attention_mask):
            repeats = query.shape[1] // key.shape[1]
            key, value = (sdpa_attention.repeat_kv(heads, repeats) for heads in (key, value))
            # To the stock function this is a module whose heads are not grouped.
            module = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
        return stock(module, query, key, value, attention_mask, **options)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", attend)


def stores_scores(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether torch would keep all scores of these heads, (rows, heads, length, width) each.

    A single query has few of them, and the library itself repeats the keys where there is a mask.
    """
    device = query.device.type
    return (
        device == "cuda"
        and query.dtype == torch.float32
        and not torch.is_autocast_enabled(device)
        and mask is None
        and query.shape[1] != key.shape[1]
        and query.shape[2] > 1
    )
