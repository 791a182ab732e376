"""A model's sizes before it is opened: from config.json, a GGUF header, or the hub.

The model that a config describes is built without memory, and measured. Only that imports torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core.architecture import gguf_config, gguf_header
from stages.core.architecture.families import Family, family_of, require
from stages.core.process.errors import UserError

TIMEOUT = 1.0  # seconds for the hub to answer

# The sizes that a config.json must give where its class has a default for them, which is one checkpoint's.
DEPTH, LENGTH = "num_hidden_layers", "max_position_embeddings"
SIZES = (DEPTH, "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")

LAYERS = 1000  # to build more takes long even without memory, and no model has as many

# Setting of config.json -> its key in GGUF, after the name of the architecture and a dot.
GGUF = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}


@dataclass(frozen=True)
class Stage:
    """Layers of equal sizes that follow each other: the first, how many, d_model, d_ff, and a layer's parameters."""

    first: int
    depth: int
    width: int
    hidden: int
    block: int


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder all of whose layers are alike.

    width: d_model. hidden: d_ff. positions: the longest sequence, None where there is no longest one. key_heads: heads
    of keys and values. biases: `ffn` where the FFN has biases. stages: only within which layers can share, layers
    of equal sizes that follow each other. parameters: all, tied embeddings counted once.
    """

    model_type: str
    layers: int
    width: int
    hidden: int
    positions: int | None
    vocabulary: int
    heads: int
    key_heads: int
    head_width: int
    tied: bool
    biases: frozenset[str]
    stages: tuple[Stage, ...]
    parameters: int

    @property
    def deepest(self) -> Stage:
        """The stage with most layers, the first of several."""
        return max(self.stages, key=lambda stage: stage.depth)

    @property
    def borders(self) -> list[int]:
        """The first layer of every stage but the first."""
        return [stage.first for stage in self.stages[1:]]

    @property
    def all_ffn_matrices(self) -> int:
        """Entries of the matrices of all FFNs."""
        return sum(stage.depth * self.ffn_matrices_of(stage.first) for stage in self.stages)

    def matrices_of(self, layer: int) -> dict[str, tuple[int, int]]:
        """Role -> (d_out, d_in) of each matrix of a layer's FFN."""
        stage = self.stage_of(layer)
        wide, narrow = (stage.hidden, stage.width), (stage.width, stage.hidden)
        return {role: narrow if role == "out" else wide for role in self.matrices}

    def ffn_matrices_of(self, layer: int) -> int:
        """Entries of the matrices of a layer's FFN."""
        return sum(d_out * d_in for d_out, d_in in self.matrices_of(layer).values())

    def stage_of(self, layer: int) -> Stage:
        """The stage of a layer."""
        return next(stage for stage in reversed(self.stages) if stage.first <= layer)

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Role -> (d_out, d_in) of each matrix of one layer's FFN."""
        wide, narrow = (self.hidden, self.width), (self.width, self.hidden)
        return {role: narrow if role == "out" else wide for role in family_of(self.model_type).matrices}

    @property
    def ffn_matrices(self) -> int:
        """Entries of the matrices of one layer's FFN."""
        return sum(d_out * d_in for d_out, d_in in self.matrices.values())

    @property
    def block(self) -> int:
        """Parameters of one layer of the deepest stage."""
        return self.deepest.block

    def __str__(self) -> str:
        longest = "any number of" if self.positions is None else self.positions
        return (
            f"{self.model_type}, {self.layers} layers, width {self.width}, FFN {self.hidden}, {self.heads} heads, "
            f"{longest} positions, vocabulary {self.vocabulary}, {'' if self.tied else 'un'}tied embeddings, "
            f"{self.parameters:,} parameters"
        )


def of_config(config: Mapping[str, Any], where: str) -> Shape:
    """The shape that a config.json describes. Raises UserError with the prefix `where` if it describes none."""
    from stages.core.architecture import opening, vision_shape

    config = typed(config)
    model_type = config.get("model_type")
    try:
        refuse_odd(config)
        if family_for(config).task == "image_classification":
            return vision_shape.of_config(config)
        _refuse_sizes(config)
        return measure(opening.outline(dict(config)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # transformers raises nearly anything at a config that makes no sense
        raise UserError(f"{where}: describes no {model_type}: {' '.join(str(error).split())[:200]}") from error


def typed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with its model type, which those that timm writes leave out, as transformers fills it in."""
    return ({"model_type": "timm_wrapper"} if "pretrained_cfg" in config else {}) | dict(config)


def family_for(config: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises UserError where there is none, with the row that its modules suggest, or where a package is missing.
    """
    from stages.core.architecture import guessing

    try:
        family = family_of(config.get("model_type"))
    except UserError as error:
        raise UserError(f"{error}{guessing.hint(config)}") from error
    require(family, config)
    return family


def of_model(model: Any) -> Shape:
    """The sizes of a model by its config, those of the dense model where weights are shared or factored."""
    from stages.core.architecture.weights import described

    return of_config(described(model), type(model).__name__)


def measure(stock: Any) -> Shape:
    """The sizes of a stock model, read off its modules. Raises UserError where its layers are not all alike."""
    from stages.core.architecture.view import ModelView
    from stages.core.architecture.weights import is_tied

    view, config = ModelView(stock), stock.config
    first, *others = ({name: p.shape for name, p in block.named_parameters()} for block in view.blocks)
    if differing := [layer for layer, shapes in enumerate(others, 1) if shapes != first]:
        raise UserError(f"layer {differing[0]} has other sizes than layer 0: all layers have to be alike")
    width, heads = view.width(0), config.num_attention_heads
    return Shape(
        model_type=config.model_type,
        layers=view.depth,
        width=width,
        hidden=view.neurons(0),
        positions=getattr(config, "max_position_embeddings", None),
        vocabulary=config.vocab_size,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or width // heads,
        tied=is_tied(stock),
        biases=frozenset({"ffn"} if view.linears(0)["in"].bias is not None else ()),
        stages=(Stage(0, view.depth, width, view.neurons(0), sum(shape.numel() for shape in first.values())),),
        parameters=sum(parameter.numel() for parameter in stock.parameters()),
    )


def longest(folder: Path) -> int | None:
    """The longest sequence of the model in a folder, by its config.json alone; None where it says none."""
    config = read_mapping(folder / "config.json")
    dense = config.get("dense")
    config = dense if isinstance(dense, dict) else config
    return config.get("max_position_embeddings", config.get("n_positions"))


def _refuse_sizes(config: Mapping[str, Any]) -> None:
    """Raise UserError where a size of a config.json is no number, or missing where its class would make one up."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[config["model_type"]]
    for size in SIZES:
        name = kind.attribute_map.get(size, size)
        needed = isinstance(default := getattr(kind, name, None), int)
        value = config.get(name, config.get(size))
        if needed and not {name, size} & config.keys():
            # A class may know the size by an older name as well.
            built = getattr(kind(**config), name)
            value = None if built == default else built
        if (value is not None or needed) and not _counts(value):
            raise UserError(f"{name} = {value!r}: a whole number from 1 is needed")
        if size == DEPTH and value is not None and value > LAYERS:
            raise UserError(f"{name} = {value}: at most {LAYERS} is allowed")
    name = kind.attribute_map.get(LENGTH, LENGTH)
    if (value := config.get(name, config.get(LENGTH))) is not None and not _counts(value):
        raise UserError(f"{name} = {value!r}: a whole number from 1 is needed")


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def refuse_odd(config: Mapping[str, Any]) -> None:
    """Raise UserError where a config.json is not that of a stock model with plain weights, all layers alike."""
    if method := config.get("quantization_config"):
        name = method.get("quant_method") if isinstance(method, Mapping) else method
        raise UserError(f"its weights are quantised ({name}): give the checkpoint that they were made from")
    if config.get("dense_type"):
        raise UserError("its layers share or factor weights: give its dense form, from `make export FORM=dense`")
    if config.get("auto_map"):
        raise UserError("it names code of its own (auto_map), which is not run: the stock class may compute otherwise")
    if config.get("per_layer_config"):
        raise UserError("it has a per_layer_config: layers of different shapes are not supported")


def of_folder(folder: Path) -> Shape:
    """The shape of the model in a folder: a stock model, or the dense model of a variant's checkpoint.

    Raises UserError where there is no config.json or it describes no supported model.
    """
    config = read_mapping(folder / "config.json")
    if isinstance(dense := config.get("dense"), dict):
        config = {"model_type": config.get("dense_type"), **dense}
    return of_config(config, str(folder / "config.json"))


def task_of(folder: Path) -> str:
    """What the model in a folder is studied at: the task of its family."""
    config = typed(read_mapping(folder / "config.json"))
    return family_of(config.get("dense_type") or config.get("model_type")).task


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file such as config.json. Raises UserError with its name where it holds no mapping."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: a mapping is needed, not {type(config).__name__}")
    return config


def of_gguf(path: Path) -> Shape:
    """The shape of the model in a GGUF file. Raises UserError if the header is damaged or of no supported family."""
    values, tensors = gguf_header.read(path)
    kind = values.get("general.architecture")
    model_type = gguf_config.model_type(path, values)
    from transformers import CONFIG_MAPPING

    names = CONFIG_MAPPING[model_type].attribute_map
    config = {names.get(name, name): values.get(f"{kind}.{key}") for name, key in GGUF.items()}
    config = {name: value for name, value in config.items() if value is not None}
    config["vocab_size"] = int(values.get(f"{kind}.vocab_size", values.get("tokenizer.ggml.tokens", 0)))
    config |= {"tie_word_embeddings": "output.weight" not in tensors, "model_type": model_type}
    return of_config(config | gguf_config.changes(path, values, tensors), str(path))


def of_source(model: str, revision: str | None = None, gguf_file: str | None = None) -> Shape | None:
    """The shape of the model that `AutoModelForCausalLM.from_pretrained` would open; None where it cannot be found out.

    A hub id is looked up in the hub's cache. Then its config.json is requested, with a timeout of a second, unless
    HF_HUB_OFFLINE is set. Raises UserError where a folder or file is damaged or `model` is no valid name.
    """
    if Path(model).is_dir():
        return of_gguf(Path(model, gguf_file)) if gguf_file else of_folder(Path(model))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        kept = try_to_load_from_cache(model, gguf_file or "config.json", revision=revision)
    except HFValidationError as error:
        raise UserError(f"{model!r} is neither a folder nor the name of a model on the hub") from error
    if isinstance(kept, str):
        return of_gguf(Path(kept)) if gguf_file else of_config(read_mapping(Path(kept)), kept)
    config = None if gguf_file else _requested(model, revision)
    return None if config is None else of_config(config, f"config.json of {model}")


def _requested(model: str, revision: str | None) -> dict[str, Any] | None:
    """The config.json from the hub, or None where the hub does not answer within TIMEOUT.

    `hf_hub_download` would retry for twenty seconds without a network.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        return None
    address = hf_hub_url(model, "config.json", revision=revision)
    try:
        answer = get_session().get(address, headers=build_hf_headers(), timeout=TIMEOUT, follow_redirects=True)
        config = answer.raise_for_status().json()
    except Exception:  # of any client: the shape stays unknown, and stage `base` reports why it cannot open the model
        return None
    return config if isinstance(config, dict) else None
