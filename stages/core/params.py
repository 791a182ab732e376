"""params.yaml, checked once at the door.

The whole file is checked whenever any part of it is read, so a mistake in one section stops every stage before
a model loads; a stage is handed only the sections it asks for, which are the ones it declares in dvc.yaml.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.core.errors import UserError

PARAMS = Path("params.yaml")

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of params.yaml: unknown keys and lossy conversions are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Runtime(Section):
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Count | None


class Base(Section):
    """The model under study, as `AutoModelForCausalLM.from_pretrained` takes it."""

    model: str
    revision: str | None = None
    gguf_file: str | None = None


class Stories(Section):
    """Text of the project's own grammar: one seed and a number of stories for each split."""

    kind: Literal["stories"]
    seed: Natural
    train: Count
    validation: Count
    test: Count


class Dataset(Section):
    """Text as `datasets.load_dataset` takes it: a hub name, or parquet, json or text with `data_files`."""

    kind: Literal["dataset"]
    path: str
    name: str | None = None
    revision: str | None = None
    data_files: dict[str, str] | None = None
    column: str = "text"
    train: str
    validation: str
    test: str

    @model_validator(mode="after")
    def _splits_differ(self):
        if len({self.train, self.validation, self.test}) < 3:
            raise ValueError("train, validation and test must be three different splits or slices")
        return self


class Prepare(Section):
    source: Annotated[Stories | Dataset, Field(discriminator="kind")]


class Extract(Section):
    site: Literal["pre_activation", "post_activation"]
    max_tokens: Annotated[int, Field(ge=2)]
    moment_tokens: Annotated[int, Field(ge=2)]
    sequence_length: Count
    batch_size: Count


class Correlate(Section):
    reach: Annotated[int, Field(ge=2)]


class Search(Section):
    """Windows are compared on the head of the validation split, in chunks of `context` tokens."""

    max_tokens: Annotated[int, Field(ge=2)]
    context: Annotated[int, Field(ge=2)]
    batch_size: Count


class LearningRate(Section):
    all: Rate
    deltas: Rate


class Finetune(Section):
    """The budget and recipe that every variant, the original included, is fine-tuned with."""

    epochs: Count
    max_tokens: Count | None
    sequence_length: Annotated[int, Field(ge=2)]
    batch_size: Count
    learning_rate: LearningRate
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(gt=0)]
    seed: Natural


class Perplexity(Section):
    context: Annotated[int, Field(ge=2)]
    stride: Count
    batch_size: Count
    max_tokens: Count | None

    @model_validator(mode="after")
    def _stride_fits(self):
        if self.stride > self.context:
            raise ValueError(f"stride = {self.stride} exceeds context = {self.context}: tokens would be skipped")
        return self


class Generate(Section):
    prompts: Annotated[list[str], Field(min_length=1)]
    new_tokens: Count
    temperature: Annotated[float, Field(gt=0)]
    top_k: Count
    seed: Natural


class Latency(Section):
    prompt_tokens: Count
    new_tokens: Count
    warmup: Natural
    repeats: Annotated[int, Field(ge=2)]


class Profile(Section):
    runtime: Runtime
    base: Base
    prepare: Prepare
    extract: Extract
    correlate: Correlate
    search: Search
    finetune: Finetune
    perplexity: Perplexity
    generate: Generate
    latency: Latency


class Pretrain(Section):
    """The recipe of the embedded model."""

    stories: Count
    seed: Natural
    vocabulary: Annotated[int, Field(ge=257)]
    layers: Count
    heads: Count
    width: Count
    context: Count
    epochs: Count
    batch_size: Count
    learning_rate: Rate
    threads: Count


class NoWindows(Section):
    choose: Literal["none"]


class Windows(Section):
    """Which layers are taken together: consecutive blocks from layer 0, or the one best window."""

    choose: Literal["blocks", "best"]
    size: Annotated[int, Field(ge=2)]


class Keep(Section):
    method: Literal["none"]


class Share(Section):
    """Depth stays; the layers of a group share one FFN weight, each with a low-rank delta of its own."""

    method: Literal["share"]
    alignment: Literal["identity", "hungarian"]
    base: Literal["first", "mean", "regression"]
    delta: Literal["none", "zero", "svd", "weighted", "joint"]
    rank: Natural
    biases: Literal["own", "shared"]
    bias_correction: bool = False

    @model_validator(mode="after")
    def _rank_fits_delta(self):
        if (self.rank > 0) != (self.delta != "none"):
            raise ValueError(f"rank = {self.rank} with delta = {self.delta}: rank is 0 exactly where delta is none")
        if self.delta == "joint" and self.base != "regression":
            raise ValueError(f"delta = joint fits its base too, by regression; base = {self.base} contradicts it")
        if self.bias_correction and self.biases == "shared":
            raise ValueError("bias_correction needs biases = own: each layer's bias takes up its own error")
        return self


class Collapse(Section):
    """A group becomes one layer: the first one's attention and norms, the merged FFN."""

    method: Literal["collapse"]
    alignment: Literal["identity", "hungarian"]
    base: Literal["first", "mean", "regression"]


class Recovery(Section):
    """What is trained: every weight, or only the deltas A and B with a Frobenius penalty on A B."""

    train: Literal["all", "deltas"]
    frobenius: Annotated[float, Field(ge=0)]


class Variant(Section):
    windows: Annotated[NoWindows | Windows, Field(discriminator="choose")]
    surgery: Annotated[Keep | Share | Collapse, Field(discriminator="method")]
    finetune: Recovery

    @model_validator(mode="after")
    def _parts_agree(self):
        if (self.windows.choose == "none") != (self.surgery.method == "none"):
            raise ValueError(f"windows.choose = {self.windows.choose} with surgery.method = {self.surgery.method}")
        deltas = getattr(self.surgery, "rank", 0) > 0
        if self.finetune.train == "deltas" and not deltas:
            raise ValueError("finetune.train = deltas needs a surgery with a delta (method share, rank above 0)")
        if self.finetune.frobenius > 0 and not deltas:
            raise ValueError(f"finetune.frobenius = {self.finetune.frobenius} needs a surgery with a delta")
        return self


VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Params(Section):
    profile: str
    profiles: Annotated[dict[str, Profile], Field(min_length=1)]
    variants: Annotated[dict[VariantName, Variant], Field(min_length=1)]
    pretrain: Pretrain

    @model_validator(mode="after")
    def _original_and_reach(self):
        if self.profile not in self.profiles:
            raise ValueError(f"profile = {self.profile} is not one of {', '.join(self.profiles)}")
        if "original" not in self.variants or self.variants["original"].surgery.method != "none":
            raise ValueError("variants.original with surgery.method = none must be there: all else is relative to it")
        reach = self.profiles[self.profile].correlate.reach
        for name, variant in self.variants.items():
            aligned = getattr(variant.surgery, "alignment", "identity") != "identity"
            if aligned and variant.windows.size > reach:
                raise ValueError(
                    f"variants.{name}.windows.size = {variant.windows.size} exceeds "
                    f"profiles.{self.profile}.correlate.reach = {reach}, so its layers could not be aligned"
                )
        return self


def load(path: Path = PARAMS) -> Params:
    """All of params.yaml, checked. Raises UserError with one line for each mistake."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return Params.model_validate(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise UserError("\n       ".join(f"{path}: {_line(mistake)}" for mistake in error.errors())) from error


def section(profile: str, name: str) -> Section:
    """One section of a profile, `profiles.<profile>.<name>`."""
    return getattr(load().profiles[profile], name)


def variant(key: str, name: str) -> Section:
    """One section of a variant, `variants.<key>.<name>`."""
    return getattr(load().variants[key], name)


def variants() -> dict[str, Variant]:
    """Every variant, in the file's order."""
    return load().variants


def pretrain() -> Pretrain:
    """The section `pretrain`."""
    return load().pretrain


def _line(mistake: dict) -> str:
    """One mistake in the file's own terms: the key, the value and what is allowed."""
    # pydantic puts the chosen member of a union into the path, right below these keys; the file has no such key.
    unions, path = {"source", "windows", "surgery"}, mistake["loc"]
    members = {"stories", "dataset", "none", "blocks", "best", "share", "collapse"}
    steps = [str(step) for above, step in zip((None, *path), path) if not (above in unions and step in members)]
    message = mistake["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(mistake["input"], dict) or not path else f" = {mistake['input']!r}"
    return f"{'.'.join(steps)}{shown}: {message}".removeprefix(": ")
