"""Grouped-query attention on CUDA that does not store its scores.

The scores are heads x length^2 numbers for each row, stored for the backward pass. In float32 on CUDA only one kernel
of torch does not store them, and it needs as many key heads as query heads. With fewer key heads, as in grouped-query
attention, torch falls back to the kernel that stores them.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def register() -> None:
    """Replace transformers' sdpa attention by one that repeats keys and values where `stores_scores` is true."""
    from transformers.integrations import sdpa_attention
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    stock = sdpa_attention.sdpa_attention_forward

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        if stores_scores(query, key, attention_mask):
            repeats = query.shape[1] // key.shape[1]
            key, value = (sdpa_attention.repeat_kv(heads, repeats) for heads in (key, value))
            # Without `num_key_value_groups` the stock function does not group heads again.
            module = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
        return stock(module, query, key, value, attention_mask, **options)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", attend)


def stores_scores(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether torch would store all scores of these heads. query, key: (rows, heads, length, head width).

    A single query has few scores, and with a mask transformers itself repeats the keys.
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
