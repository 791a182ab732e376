"""A hub on this machine: what `huggingface_hub` and `datasets` ask for, served from a folder.

The folder has models/OWNER/NAME and datasets/OWNER/NAME with files laid out, named and written as in the repositories
that profiles gpt2 and smollm2 name; contents are made up, sizes are a matter of `Shape`.
"""

import base64
import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from closure import ROOT
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer

from stages.core.text import sources


@dataclass(frozen=True)
class Shape:
    """What of a model's shape costs time; depth and context stay those of the real one."""

    width: int
    heads: int
    key_value_heads: int
    neurons: int
    vocabulary: int


SMALL = {"gpt2": Shape(48, 4, 4, 192, 600), "smollm2": Shape(48, 6, 2, 128, 600)}
REAL = {"gpt2": Shape(768, 12, 12, 3072, 50257), "smollm2": Shape(576, 9, 3, 1536, 49152)}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a hub that serves `folder` while the context lasts."""

    class Handler(_Handler):
        root = folder

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield "http://{}:{}".format(*server.server_address)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def log_message(self, *_) -> None:
        pass

    def _answer(self, body: bytes = b"") -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+|refs/[^/]+/[^/]+)/(.+)", path):
            data, name, _, file = found.groups()
            self._file(self.root / ("datasets" if data else "models") / name, file)
        elif path in ("/api/repos/create", "/api/validate-yaml"):
            self._made(path, json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            repo, what = found.groups()
            self._taken(self.root / "models" / repo, what, body)
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+?)(/.*)?", path):
            kind, name, rest = found.groups()
            self._about(self.root / kind / name, name, (rest or "").strip("/"), parse_qs(address.query), body)
        else:
            self._send(404, b"{}")

    def _file(self, repo: Path, name: str) -> None:
        if not repo.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if not (repo / name).is_file():
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _commit(repo)})
        content, status, headers = (repo / name).read_bytes(), 200, {"Accept-Ranges": "bytes"}
        headers |= {"X-Repo-Commit": _commit(repo), "ETag": f'"{_oid(repo / name)}"'}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{min(end, len(content) - 1)}/{len(content)}"
            content, status = content[begin : end + 1], 206
        self._send(status, content, headers)

    def _about(self, repo: Path, name: str, rest: str, query: dict, body: bytes) -> None:
        if not repo.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = sorted(path for path in repo.rglob("*") if path.is_file())
        folders = sorted(path for path in repo.rglob("*") if path.is_dir())
        what, _, inside = rest.partition("/")
        if what in ("", "revision"):
            known = {"id": name, "sha": _commit(repo), "private": False, "gated": False, "disabled": False, "tags": []}
            known["siblings"] = [{"rfilename": str(path.relative_to(repo))} for path in files]
            return self._json(known)
        if what == "refs":
            return self._json({"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": _commit(repo)}]})
        if what == "paths-info":
            if self.headers.get("Content-Type", "").startswith("application/json"):
                asked = json.loads(body)["paths"]
            else:
                asked = parse_qs(body.decode())["paths"]
            asked = [asked] if isinstance(asked, str) else asked
            return self._json([_entry(repo, repo / path) for path in asked if (repo / path).exists()])
        if what == "tree":
            below = repo / inside.partition("/")[2]
            if not below.is_dir():
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            deep = query.get("recursive", ["false"])[0].lower() in ("1", "true")
            listed = [path for path in folders + files if below in path.parents]
            return self._json([_entry(repo, path) for path in listed if deep or path.parent == below])
        self._send(404, b"{}")

    def _made(self, path: str, asked: dict) -> None:
        """A new repository for models, private or not; or the header of a model card, which is always right."""
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not self.headers.get("Authorization", "").startswith("Bearer hf_"):
            return self._send(401, b"{}")
        name = f"{asked['organization']}/{asked['name']}"
        (self.root / "models" / name).mkdir(parents=True, exist_ok=True)
        write(self.root / "models" / name, ".visibility", asked.get("visibility"))
        self._json({"url": f"{self._address()}/{name}"})

    def _taken(self, repo: Path, what: str, body: bytes) -> None:
        """An upload: first how each file is to be sent (within the commit itself), then the commit."""
        if what == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
            return self._json({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                path = repo / line["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "deletedFile":
                (repo / line["value"]["path"]).unlink()
        url = f"{self._address()}/{repo.parent.name}/{repo.name}/commit/{_commit(repo)}"
        self._json({"success": True, "commitOid": _commit(repo), "commitUrl": url})

    def _address(self) -> str:
        return "http://{}:{}".format(*self.server.server_address)

    def _json(self, value) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _commit(repo: Path) -> str:
    return hashlib.sha1(str(repo.name).encode()).hexdigest()


@cache
def _oid(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _entry(repo: Path, path: Path) -> dict:
    name = str(path.relative_to(repo))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _oid(path)[:40], "size": path.stat().st_size}


def fill(folder: Path, shapes: dict[str, Shape]) -> None:
    """Lay out the repositories of both profiles below `folder`."""
    text = sources.generated(ROOT / "data" / "lexicon.yaml", 0, "train", 900)
    gpt2(folder / "models/openai-community/gpt2", shapes["gpt2"], text)
    smollm2(folder / "models/HuggingFaceTB/SmolLM2-135M", shapes["smollm2"], text)
    wikitext(folder / "datasets/Salesforce/wikitext", text)
    c4(folder / "datasets/allenai/c4", text)
    imdb(folder / "datasets/stanfordnlp/imdb", text)
    cnn_dailymail(folder / "datasets/abisee/cnn_dailymail", text)


def gpt2(folder: Path, shape: Shape, text: list[str]) -> None:
    """As the real file has them: names without `transformer.`, masks among the weights, no head."""
    tokens = bpe(folder, shape.vocabulary, text, last=True)
    config = {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": tokens - 1, "embd_pdrop": 0.1, "eos_token_id": tokens - 1, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": shape.width,
        "n_head": shape.heads, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": tokens,
    }  # fmt: skip
    if shape.neurons != 4 * shape.width:
        config["n_inner"] = shape.neurons
    draw, width = _draw(0), shape.width
    state = {"wte.weight": draw(tokens, width), "wpe.weight": draw(1024, width)}
    for layer in range(12):
        sizes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
        sizes |= {"mlp.c_fc": (width, shape.neurons), "mlp.c_proj": (shape.neurons, width)}
        for name, size in sizes.items():
            state |= {f"h.{layer}.{name}.weight": draw(*size), f"h.{layer}.{name}.bias": draw(size[1])}
        for name in ("ln_1", "ln_2"):
            state |= {f"h.{layer}.{name}.weight": 1 + draw(width), f"h.{layer}.{name}.bias": draw(width)}
        state[f"h.{layer}.attn.bias"] = torch.ones(1024, 1024).tril()[None, None]
    state |= {"ln_f.weight": 1 + draw(width), "ln_f.bias": draw(width)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    write(folder, "config.json", config)
    write(folder, "generation_config.json", {
        "_from_model_config": True, "bos_token_id": tokens - 1, "eos_token_id": tokens - 1,
        "transformers_version": "4.26.0.dev0",
    })  # fmt: skip
    write(folder, "tokenizer_config.json", {"model_max_length": 1024})


def smollm2(folder: Path, shape: Shape, text: list[str]) -> None:
    """As the real file has them: bfloat16, tied, no head."""
    tokens = bpe(folder, shape.vocabulary, text, last=False)
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
        "eos_token_id": 0, "hidden_act": "silu", "hidden_size": shape.width, "initializer_range": 0.0417,
        "intermediate_size": shape.neurons, "is_llama_config": True, "max_position_embeddings": 8192,
        "mlp_bias": False, "model_type": "llama", "num_attention_heads": shape.heads, "num_hidden_layers": 30,
        "num_key_value_heads": shape.key_value_heads, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True, "vocab_size": tokens,
    }  # fmt: skip
    draw, width, head = _draw(1), shape.width, shape.width // shape.heads
    narrow, state = head * shape.key_value_heads, {}
    state["model.embed_tokens.weight"] = draw(tokens, width)
    for layer in range(30):
        sizes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width)}
        sizes |= {"self_attn.v_proj": (narrow, width), "self_attn.o_proj": (width, width)}
        sizes |= {f"mlp.{name}_proj": (shape.neurons, width) for name in ("gate", "up")}
        sizes["mlp.down_proj"] = (width, shape.neurons)
        state |= {f"model.layers.{layer}.{name}.weight": draw(*size) for name, size in sizes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{layer}.{name}.weight"] = 1 + draw(width)
    state["model.norm.weight"] = 1 + draw(width)
    bfloat16 = {name: value.bfloat16() for name, value in state.items()}
    save_file(bfloat16, folder / "model.safetensors", {"format": "pt"})
    write(folder, "config.json", config)
    write(folder, "generation_config.json", {
        "_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0, "transformers_version": "4.40.1",
    })  # fmt: skip
    special = "<|endoftext|>"
    write(folder, "special_tokens_map.json", {"bos_token": special, "eos_token": special, "unk_token": special})
    write(folder, "tokenizer_config.json", {
        "add_prefix_space": False, "bos_token": special, "eos_token": special, "unk_token": special,
        "clean_up_tokenization_spaces": False, "model_max_length": 8192, "tokenizer_class": "GPT2Tokenizer",
        "vocab_size": tokens,
    })  # fmt: skip


def _draw(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: 0.05 * torch.randn(*size, generator=generator)


def bpe(folder: Path, size: int, text: list[str], last: bool) -> int:
    """Write a byte-level BPE with its end token last or first; returns how many tokens a model must have."""
    folder.mkdir(parents=True)
    end, learnt = "<|endoftext|>", ByteLevelBPETokenizer()
    learnt.train_from_iterator(text, min(size, 600) - last, special_tokens=[] if last else [end], show_progress=False)
    if last:
        learnt.add_special_tokens([end])
    learnt.save(str(folder / "tokenizer.json"))
    learnt.save_model(str(folder))
    if last:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        write(folder, "vocab.json", vocabulary | {end: learnt.token_to_id(end)})
    return max(size, learnt.get_vocab_size()) if size > 600 else learnt.get_vocab_size()


def wikitext(folder: Path, text: list[str]) -> None:
    """Rows as in the real set: a blank one, a heading, a blank one, paragraphs."""
    rows = {"train": text[:600], "validation": text[600:750], "test": text[750:]}
    configs = ["wikitext-103-raw-v1", "wikitext-103-v1", "wikitext-2-raw-v1", "wikitext-2-v1"]
    for config in configs:
        for split, stories in rows.items():
            lines = [line for n, story in enumerate(stories) for line in ("", f" = Story {n} = \n", "", f" {story} \n")]
            parquet(folder / config / f"{split}-00000-of-00001.parquet", {"text": lines})
    card(folder, {
        name: {split: f"{name}/{split}-*" for split in ("test", "train", "validation")} for name in configs
    }, "  features:\n  - name: text\n    dtype: string\n")  # fmt: skip


def c4(folder: Path, text: list[str]) -> None:
    """Lines of JSON in compressed files, of which a profile names one."""
    lines = [json.dumps({"text": f"{story}\nMore.", "timestamp": "2019", "url": "https://"}) for story in text[:600]]
    (folder / "en").mkdir(parents=True)
    for number in range(2):
        content = gzip.compress("\n".join(lines[300 * number :]).encode(), mtime=0)
        (folder / f"en/c4-validation.0000{number}-of-00008.json.gz").write_bytes(content)


def imdb(folder: Path, text: list[str]) -> None:
    chance = random.Random(0)
    for split, count in {"train": 200, "test": 120, "unsupervised": 20}.items():
        chosen = [f"{story}<br /><br />It was {chance.random()}." for story in chance.choices(text, k=count)]
        labels = [-1] * count if split == "unsupervised" else [int(n >= count // 2) for n in range(count)]
        parquet(folder / f"plain_text/{split}-00000-of-00001.parquet", {"text": chosen, "label": labels})
    splits = {split: f"plain_text/{split}-*" for split in ("train", "test", "unsupervised")}
    names = "          '0': neg\n          '1': pos\n"
    card(folder, {"plain_text": splits}, (
        "  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n"
        f"        names:\n{names}"
    ))  # fmt: skip


def cnn_dailymail(folder: Path, text: list[str]) -> None:
    for config in ("1.0.0", "2.0.0", "3.0.0"):
        for split, parts in {"train": 3, "validation": 1, "test": 1}.items():
            for part in range(parts):
                chosen = [" ".join(text[n : n + 3]) for n in range(part * 110, part * 110 + 110)]
                told = ["\n".join(f"{s} ." for s in story.split(". ")[:3]) for story in chosen]
                columns = {"article": chosen, "highlights": told, "id": [f"{n:040x}" for n in range(110)]}
                parquet(folder / config / f"{split}-{part:05d}-of-{parts:05d}.parquet", columns)
    splits = ("train", "validation", "test")
    card(folder, {name: {s: f"{name}/{s}-*" for s in splits} for name in ("1.0.0", "2.0.0", "3.0.0")}, (
        "  features:\n  - name: article\n    dtype: string\n  - name: highlights\n    dtype: string\n"
        "  - name: id\n    dtype: string\n"
    ))  # fmt: skip


def card(folder: Path, configs: dict[str, dict[str, str]], features: str) -> None:
    """README.md with the metadata that tells `datasets` which files belong to which configuration and split."""
    lines = ["---", "dataset_info:"]
    for name in configs:
        lines += [f"- config_name: {name}", features.rstrip("\n")]
    lines.append("configs:")
    for name, files in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, pattern in files.items():
            lines += [f"  - split: {split}", f"    path: {pattern}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# A data set"]) + "\n", encoding="utf-8")


def parquet(path: Path, columns: dict[str, list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write(folder: Path, name: str, value: dict) -> None:
    (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
