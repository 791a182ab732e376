"""Damaged and hostile files end in a message or are read; no reader raises anything else, unpickles or runs code.

Each reader meets TRIES damaged copies of a file of its own, the same in every run.
"""

import io
import json
import pickle
import random
import zipfile

import numpy as np
import pytest
import tiny
import torch
from closure import ROOT
from shrunk import edit, keep

from stages.core.architecture import opening
from stages.core.process import artifacts
from stages.core.process.errors import UserError
from stages.core.settings import params
from stages.core.text import corpus, labelled
from stages.core.text.tokenizer import open_tokenizer

TRIES = 500


def params_file(path):
    """The file, comments included, of one profile and three variants: reading all of it takes three times as long."""

    def shorten(values):
        keep(values, ("original", "softshare", "svd"))
        for name in [name for name in values["profiles"] if name != "small"]:
            del values["profiles"][name]

    (path.parent / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    edit(path.parent, shorten)
    return path.parent / "params.yaml", params.load


def tokens(path):
    corpus.write_tokens(path, (np.arange(300) * 7919 % 2048).astype(np.int32))
    return path, corpus.read_tokens


def rows(path):
    corpus.write_rows(path, [list(range(n)) for n in range(12)])
    return path, lambda file: corpus.read_rows(file, 8)


def reviews(path):
    labelled.write(path, [np.arange(n, dtype=np.int32) for n in range(1, 9)], [n % 2 for n in range(8)])
    return path, labelled.read


def arrays(path):
    artifacts.write_arrays(path, {"0-1": np.arange(60), "0-2": np.arange(60)[::-1]})
    return path, artifacts.read_arrays


def tensors(path):
    artifacts.write_tensors(path, {"b": torch.eye(9), "a": torch.arange(3)}, {"progress": "[]"})
    return path, lambda file: (artifacts.read_tensors(file), artifacts.read_metadata(file))


def figures(path):
    artifacts.write_json(path, {"perplexity": {"before": 1.5, "after": 1.25}, "words": ["é", None]})
    return path, artifacts.read_json


def curve(path):
    artifacts.write_csv(path, [{"step": step, "loss": 1 / step} for step in range(1, 9)])
    return path, artifacts.read_csv


def shared_config(path):
    return _shared(path) / "config.json", lambda file: tiny.load(file.parent)


def shared_weights(path):
    return _shared(path) / "model.safetensors", lambda file: tiny.load(file.parent)


def _shared(path):
    tiny.save(*tiny.shared("gpt2", 2), path.parent / "shared")
    return path.parent / "shared"


def model_config(path):
    return _stock(path) / "config.json", lambda file: opening.open_source(str(file.parent), None, None)


def model_weights(path):
    return _stock(path) / "model.safetensors", lambda file: opening.open_source(str(file.parent), None, None)


def _stock(path):
    folder = path.parent / "stock"
    tiny.model("gpt2", vocab_size=2048).save_pretrained(folder)
    open_tokenizer(ROOT / "data" / "model").save_pretrained(folder)
    return folder


def gguf(path):
    """A Llama of two layers with its vocabulary, as llama.cpp keeps it."""
    from gguf import GGUFWriter

    width, hidden, words = 32, 64, ["<|endoftext|>", "<s>", "</s>", "ab", *map(chr, range(97, 123))]
    writer = GGUFWriter(path, "llama")
    for add, value in [
        (writer.add_context_length, 64), (writer.add_embedding_length, width), (writer.add_block_count, 1),
        (writer.add_feed_forward_length, hidden), (writer.add_head_count, 4), (writer.add_head_count_kv, 4),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_dimension_count, 8),
        (writer.add_vocab_size, len(words)), (writer.add_tokenizer_model, "gpt2"), (writer.add_token_list, words),
        (writer.add_token_merges, ["a b"]), (writer.add_bos_token_id, 0), (writer.add_eos_token_id, 1),
    ]:  # fmt: skip
        add(value)
    shapes = {"token_embd": (len(words), width), "output_norm": (width,), "blk.0.attn_norm": (width,)}
    shapes |= {f"blk.0.attn_{part}": (width, width) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_norm": (width,), "blk.0.ffn_down": (width, hidden)}
    shapes |= {f"blk.0.ffn_{part}": (hidden, width) for part in ("gate", "up")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, lambda file: opening.open_source(str(file.parent), None, file.name)


# How many damaged files each reader is given; those that build a model take longer.
READERS = {
    params_file: TRIES, tokens: TRIES, rows: TRIES, reviews: TRIES, arrays: TRIES, tensors: TRIES, figures: TRIES,
    curve: TRIES, shared_config: TRIES, shared_weights: TRIES, model_config: 100, model_weights: 100, gguf: 100,
}  # fmt: skip


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """The bytes with some flipped, cut off, left out, doubled or made up, mostly near the start, where headers are."""
    found = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(min(len(found), chance.choice((64, 1024, len(whole)))) or 1)
        match chance.randrange(6):
            case 0 if found:
                found[min(at, len(found) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                found[at : at + 1] = chance.randbytes(chance.choice((1, 4, 8)))
            case 2:
                del found[at:]
            case 3:
                del found[at : at + chance.choice((1, 7, 100))]
            case 4:
                found[at:at] = found[at : at + 40]
            case 5:
                found[at : at + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, b"99999999", b"nan", b"-1", b"null", b'""'))
    return bytes(found)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_damaged_file_is_a_message_or_is_read(reader, tmp_path):
    path, read = reader(tmp_path / "file.bin")
    whole, chance, refused, odd = path.read_bytes(), random.Random(reader.__name__), 0, {}
    read(path)
    for number in range(READERS[reader]):
        path.write_bytes(damaged(whole, chance))
        try:
            read(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) or reader is params_file
        except Exception as error:
            odd[f"{type(error).__name__}: {str(error)[:200]}"] = number
    assert not odd
    assert refused > READERS[reader] // 4


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a file was unpickled",))


def test_pickles_are_refused_in_every_disguise(tmp_path):
    arrays = tmp_path / "arrays.npz"
    with zipfile.ZipFile(arrays, "w") as file:
        bytes_ = io.BytesIO()
        np.save(bytes_, np.array([Trap()], dtype=object), allow_pickle=True)
        file.writestr("0-1.npy", bytes_.getvalue())
    with pytest.raises(UserError, match="arrays.npz"):
        artifacts.read_arrays(arrays)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="model.safetensors"):
        artifacts.read_tensors(tmp_path / "model.safetensors")


def test_weights_that_are_pickled_are_not_taken(tmp_path):
    folder = _stock(tmp_path / "file")
    state = torch.nn.Linear(1, 1).state_dict() | {"trap": Trap()}
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state))
    with pytest.raises(UserError, match="safetensors"):
        opening.open_source(str(folder), None, None)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = _stock(tmp_path / "file")
    (folder / "own.py").write_text("raise SystemExit('code of a model was run')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="base.model"):
        opening.open_source(str(folder), None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    folder = _stock(tmp_path / "file")
    weights = artifacts.read_tensors(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="h.1.mlp.c_fc.weight holds a value that is not finite"):
        opening.open_source(str(folder), None, None)


def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(tmp_path):
    folder = _stock(tmp_path / "file")
    tiny.model("gpt2", vocab_size=97).save_pretrained(folder)
    with pytest.raises(UserError, match="stock' has 2048 tokens, its model only 97"):
        opening.open_source(str(folder), None, None)
