"""What a profile in params.yaml may say: one typed section for each stage that reads one."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.core.settings.section import Count, Natural, Rate, Section
from stages.core.settings.texts import ArticlePairs, Prepare, ReviewSet


class Runtime(Section):
    """`precision` is that of training's forward and backward passes; weights and every evaluation are float32."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Count | None
    precision: Literal["float32", "bfloat16"] = "float32"


def _enough(section: Section, length: str) -> Section:
    """The section, unless its `max_tokens` make no whole sequence."""
    least = getattr(section, length)
    if section.max_tokens is not None and section.max_tokens < least:
        raise ValueError(f"max_tokens = {section.max_tokens} is less than {length} = {least}")
    return section


class Base(Section):
    """The model under study, as `AutoModelForCausalLM.from_pretrained` takes it."""

    model: str
    revision: str | None = None
    gguf_file: str | None = None


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

    @model_validator(mode="after")
    def _one_chunk_at_least(self):
        return _enough(self, "context")


class Schedule(Section):
    """How any training goes: steps of batch_size x accumulation examples, a rising, then falling learning rate."""

    epochs: Count
    batch_size: Count
    accumulation: Count = 1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(gt=0)]


class Repeated(Schedule):
    """A training that is done once for each seed, to say how far seeds differ."""

    seeds: Annotated[list[Natural], Field(min_length=1)]

    @model_validator(mode="after")
    def _seeds_differ(self):
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("the seeds must differ")
        return self


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


class Finetune(Repeated):
    """The budget and recipe that every variant, the original included, is fine-tuned with, once for each seed."""

    max_tokens: Count | None
    sequence_length: Annotated[int, Field(ge=2)]
    learning_rate: LearningRate
    validation: Validation

    @model_validator(mode="after")
    def _one_sequence_at_least(self):
        return _enough(self, "sequence_length")


class HeadRates(Section):
    """Of the task's head, and of whatever of the model is trained with it."""

    head: Rate
    model: Rate


class HeadRecipe(Repeated):
    """The one recipe by which every variant learns the sentiment task, once for each seed.

    train: the head with `all` of the model, with its `deltas` (a variant without deltas: the head alone), or the
    `head` alone.
    """

    train: Literal["all", "deltas", "head"]
    learning_rate: HeadRates


class SeedPerplexity(Section):
    """The seeds' own protocol: the first `rows` test rows with text, each padded to `length`, the padding counted."""

    rows: Count
    length: Annotated[int, Field(ge=2)]
    batch_size: Count


class Perplexity(Section):
    context: Annotated[int, Field(ge=2)]
    stride: Count
    batch_size: Count
    max_tokens: Count | None
    seed_protocol: SeedPerplexity | None = None

    @model_validator(mode="after")
    def _stride_fits(self):
        if self.stride > self.context:
            raise ValueError(f"stride = {self.stride} exceeds context = {self.context}: tokens would be skipped")
        return _enough(self, "context")


class Generate(Section):
    prompts: Annotated[list[str], Field(min_length=1)]
    new_tokens: Count
    temperature: Annotated[float, Field(gt=0)]
    top_k: Count
    seed: Natural


class SeedLatency(Section):
    """The seeds' own protocol: `repeats` generations from `prompt_tokens` to `length`, ending early allowed."""

    prompt_tokens: Count
    length: Annotated[int, Field(ge=2)]
    repeats: Count

    @model_validator(mode="after")
    def _something_is_written(self):
        if self.length <= self.prompt_tokens:
            raise ValueError(f"length = {self.length} counts the prompt: it must exceed {self.prompt_tokens}")
        return self


class Latency(Section):
    prompt_tokens: Count
    new_tokens: Count
    warmup: Natural
    repeats: Annotated[int, Field(ge=2)]
    seed_protocol: SeedLatency | None = None


class SummaryTraining(Repeated):
    """Training of all weights on article/summary pairs, the loss on the summary alone, once for each seed."""

    learning_rate: Rate


class SeedSummaries(Section):
    """The seeds' own protocol: articles cut at `article_tokens`, the prompt counted as part of the summary."""

    article_tokens: Count
    new_tokens: Count


class Summarize(Section):
    """`no_repeat_over`: whether the article's n-grams are forbidden too (`all`, transformers' way and the seeds')."""

    format: str
    articles: Count
    context: Count
    new_tokens: Count
    beams: Count
    no_repeat_ngram: Natural
    no_repeat_over: Literal["continuation", "all"]
    batch_size: Count
    training: SummaryTraining | None = None
    seed_protocol: SeedSummaries | None = None

    @model_validator(mode="after")
    def _format_has_the_article_once(self):
        if self.format.count("{article}") != 1:
            raise ValueError(f"format = {self.format!r} must hold {{article}} once")
        return self

    @model_validator(mode="after")
    def _an_article_has_room(self):
        if self.new_tokens >= self.context:
            raise ValueError(
                f"new_tokens = {self.new_tokens}: context = {self.context} holds the article too, so 1 to "
                f"{self.context - 1} are allowed"
            )
        return self


class Profile(Section):
    runtime: Runtime
    base: Base
    prepare: Prepare
    reviews: ReviewSet
    extract: Extract
    correlate: Correlate
    search: Search
    finetune: Finetune
    sentiment: HeadRecipe
    perplexity: Perplexity
    generate: Generate
    latency: Latency
    articles: ArticlePairs
    summarize: Summarize

    @model_validator(mode="after")
    def _there_are_enough_articles(self):
        source, most = self.articles.source, self.articles.source.most
        if most is not None and self.summarize.articles > most:
            raise ValueError(
                f"summarize.articles = {self.summarize.articles}: articles.source.test has {most}, so 1 to {most} are "
                "allowed"
            )
        if self.summarize.training and source.train is None:
            raise ValueError("summarize.training needs pairs to learn from: articles.source.train is null")
        return self


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
