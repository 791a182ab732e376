"""What a profile in params.yaml may say: one typed section for each stage that reads one."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of params.yaml: unknown keys and lossy conversions are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Runtime(Section):
    """`precision` is that of training's forward and backward passes; weights and every evaluation are float32."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Count | None
    precision: Literal["float32", "bfloat16"] = "float32"


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
    """`sites` are the activations that neurons may be matched by."""

    sites: Annotated[list[Literal["pre_activation", "post_activation"]], Field(min_length=1)]
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


class Schedule(Section):
    """How any training goes: steps of batch_size x accumulation examples, a rising, then falling learning rate."""

    epochs: Count
    batch_size: Count
    accumulation: Count = 1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(gt=0)]


class LearningRate(Section):
    """By what is trained: a whole model; deltas A and B; a shared base; norms and biases of the shared layers."""

    all: Rate
    deltas: Rate
    base: Rate
    norms: Rate


class Validation(Section):
    """How often, and on how many tokens of the validation split, the best state so far is looked for."""

    times: Count
    max_tokens: Annotated[int, Field(ge=2)]


class Finetune(Schedule):
    """The budget and recipe that every variant, the original included, is fine-tuned with, once for each seed."""

    max_tokens: Count | None
    sequence_length: Annotated[int, Field(ge=2)]
    learning_rate: LearningRate
    validation: Validation
    seeds: Annotated[list[Natural], Field(min_length=1)]

    @model_validator(mode="after")
    def _seeds_differ(self):
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("the seeds must differ")
        return self


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
