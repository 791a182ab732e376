"""A cache of keys and values for beam search on many prompts.

transformers' own cache computes every prompt once for each beam, and copies all keys and values twice for each token:
to append the new ones, and to follow the beams. Here a prompt is computed once, and only what follows it is moved.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@torch.no_grad()
def read(model: Any, ids: Tensor, seen: Tensor, beams: int, new_tokens: int) -> DynamicCache:
    """The cache for `generate(ids, num_beams=beams, max_new_tokens=new_tokens)`, with all but the last token of `ids`.

    ids: prompts padded on the left, int64, (n, length), length at least 2. seen: 0 for padding, else 1, like `ids`.
    """
    cache = DynamicCache(config=model.config)
    before = seen[:, :-1]
    positions = (before.cumsum(-1) - 1).clamp_min(0)
    model.base_model(ids[:, :-1], attention_mask=before, position_ids=positions, past_key_values=cache, use_cache=True)
    # Layers of a sliding window forget; they stay as they are.
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[number] = _Layer(layer, beams, new_tokens)
        else:
            layer.batch_repeat_interleave(beams)
    return cache


class _Layer(DynamicLayer):
    """A layer's keys and values, (n * beams, heads, length, width), in tensors with room for what is to come.

    All beams of a prompt have the same keys and values up to its end, so a reordering moves only later ones.
    """

    def __init__(self, prompts: DynamicLayer, beams: int, room: int):
        super().__init__()
        self.lazy_initialization(prompts.keys, prompts.values)
        self.prompt = self.length = prompts.get_seq_length()
        self.whole = [_with_room(each, beams, room) for each in (prompts.keys, prompts.values)]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (each[:, :, : self.length] for each in self.whole)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        begin, self.length = self.length, self.length + key_states.shape[-2]
        for each, states in zip(self.whole, (key_states, value_states)):
            each[:, :, begin : self.length] = states
        self._show()
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for each in self.whole:
            later = each[:, :, self.prompt : self.length]
            later.copy_(later.index_select(0, beam_idx.to(later.device)))


def _with_room(states: Tensor, beams: int, room: int) -> Tensor:
    """(n, heads, length, width) -> (n * beams, heads, length + room, width), each prompt once for each beam."""
    rows, heads, length, width = states.shape
    whole = states.new_empty(rows * beams, heads, length + room, width)
    whole[:, :, :length] = states.repeat_interleave(beams, 0)
    return whole
