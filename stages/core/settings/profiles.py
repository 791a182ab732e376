"""What a profile in params.yaml may say: one typed section for each stage that reads one.

The defaults are those of GPT-2 on a GPU box: a profile says what differs. The sections of a profile for images that
differ from those for language are in stages.core.settings.images.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.core.settings.section import Count, Natural, Once, Rate, Section, Seed, Sequence, Several, Text
from stages.core.settings.texts import ArticlePairs, Prepare, ReviewSet

PROMPTS = [
    "India will become global leader in AI because",
    "The history of the city begins with",
    "In the second half of the season, the team",
]
SUMMARY_FORMAT = "{article}\nTL;DR:"

Site = Literal["pre_activation", "post_activation"]


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError("auto, cpu, cuda or one GPU, as cuda:1, is needed")
    return name


class Runtime(Section):
    """Where everything runs. Weights and every evaluation are float32."""

    device: Annotated[str, AfterValidator(_device)] = Field("auto", description="auto takes a GPU where there is one")
    threads: Count | None = Field(None, description="of one process on the CPU; null leaves it to torch")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of training's forward and backward passes"
    )


def _enough(section: Section, length: str) -> Section:
    """The section, unless its `max_tokens` make no whole sequence."""
    least = getattr(section, length)
    if section.max_tokens is not None and section.max_tokens < least:
        raise ValueError(f"max_tokens = {section.max_tokens} is less than {length} = {least}")
    return section


class Base(Section):
    """The model under study, as `from_pretrained` of the task's auto class takes it."""

    model: Text = Field(description="a hub id, or a folder (best below data/local/model)")
    revision: Text | None = Field(None, description="a branch, tag or commit of the hub; null is its newest")
    gguf_file: Text | None = Field(None, description="the file of the folder that holds the model, where it is GGUF")


class Extract(Section):
    """What is recorded of the model on calibration text: activations to align by, moments to fit to."""

    sites: Annotated[list[Site], Once] = Field(
        ["pre_activation", "post_activation"],
        min_length=1,
        description="activations that neurons may be matched by",
    )
    max_tokens: Several = Field(4000, description="tokens whose activations are kept")
    moment_tokens: Several = Field(131072, description="tokens that the moments are taken over")
    sequence_length: Count = Field(1024, description="tokens of a sequence")
    batch_size: Count = Field(4, description="sequences of a forward pass")


class Correlate(Section):
    """Which layers are correlated."""

    reach: Several = Field(10, description="layers of the largest window that can be aligned")


class Search(Section):
    """Windows are compared on the head of the validation split."""

    max_tokens: Several = Field(65536, description="tokens of the validation split")
    context: Sequence = Field(1024, description="tokens of a chunk")
    batch_size: Count = Field(8, description="chunks of a forward pass")

    @model_validator(mode="after")
    def _one_chunk_at_least(self):
        return _enough(self, "context")


class Schedule(Section):
    """How any training goes: steps of batch_size x accumulation examples, a rising, then falling learning rate."""

    epochs: Count = Field(description="passes over the training data")
    batch_size: Count = Field(description="examples of a forward and backward pass")
    accumulation: Count = Field(1, description="passes of a step")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="of the rate after the warmup")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises")
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW's, of matrices")
    clip: float = Field(1.0, ge=1e-6, description="largest norm of a gradient")


class Repeated(Schedule):
    """A training that is done once for each seed, to say how far seeds differ."""

    seeds: Annotated[list[Seed], Once] = Field(
        [0], min_length=1, description="one training for each; no two are the same"
    )


class LearningRate(Section):
    """Learning rates, one for each kind of parameter."""

    all: Rate = Field(5e-5, description="a whole model")
    deltas: Rate = Field(1e-3, description="deltas A and B")
    base: Rate = Field(1e-4, description="a shared base")
    norms: Rate = Field(1e-3, description="norms and biases of the shared layers")


class Validation(Section):
    """How often, and on how many tokens, the validation split is scored."""

    times: Count = Field(8, description="evaluations in a training")
    max_tokens: Several = Field(32768, description="tokens of the validation split")


class Finetune(Repeated):
    """The budget and recipe that every variant, the original included, is fine-tuned with, once for each seed."""

    epochs: Count = Field(2, description="passes over the train split")
    batch_size: Count = Field(4, description="sequences of a forward and backward pass")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    max_tokens: Count | None = Field(None, description="tokens of the train split; null is all of it")
    sequence_length: Sequence = Field(1024, description="tokens of a sequence")
    dropout: float = Field(0.0, ge=0, lt=1, description="of every dropout layer, whatever config.json says; 0 is off")
    learning_rate: LearningRate = LearningRate()
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _one_sequence_at_least(self):
        return _enough(self, "sequence_length")


class HeadRates(Section):
    """Learning rates of the task's head, and of what is trained with it."""

    head: Rate = Field(1e-3, description="the head")
    model: Rate = Field(2e-5, description="what is trained with it")


class HeadRecipe(Repeated):
    """The one recipe by which every variant learns the sentiment task, once for each seed."""

    epochs: Count = Field(2, description="passes over the training reviews")
    batch_size: Count = Field(16, description="reviews of a forward and backward pass")
    train: Literal["all", "deltas", "head"] = Field(
        "all",
        description="the head with `all` of the model, with its `deltas` (alone where there are none), or alone",
    )
    learning_rate: HeadRates = HeadRates()


class SeedPerplexity(Section):
    """The research notes' way: the first `rows` test rows with text, each padded to `length`, the padding counted."""

    rows: Count = Field(200, description="test rows with text")
    length: Sequence = Field(128, description="tokens of a row, padding counted")
    batch_size: Count = Field(8, description="rows of a forward pass")


class Perplexity(Section):
    """Perplexity by a window that slides over the test split."""

    context: Sequence = Field(1024, description="tokens of the window")
    stride: Count = Field(512, description="tokens scored by a window")
    batch_size: Count = Field(8, description="windows of a forward pass")
    max_tokens: Count | None = Field(None, description="tokens of the test split; null is all of it")
    seed_protocol: SeedPerplexity | None = Field(None, description="{} measures as the research notes did, too")

    @model_validator(mode="after")
    def _stride_fits(self):
        if self.stride > self.context:
            raise ValueError(f"stride = {self.stride} exceeds context = {self.context}: tokens would be skipped")
        return _enough(self, "context")


class Generate(Section):
    """Samples of text by every variant."""

    prompts: Annotated[list[Text], Once] = Field(PROMPTS, min_length=1, description="what is continued")
    new_tokens: Count = Field(60, description="tokens of a continuation")
    temperature: float = Field(0.8, gt=0, description="divides the logits")
    top_k: Count = Field(40, description="tokens to draw from")
    seed: Seed = Field(0, description="of the draw")


class SeedLatency(Section):
    """The research notes' way: `repeats` generations from `prompt_tokens` to `length`, ending early allowed."""

    prompt_tokens: Count = Field(8, description="tokens of the prompt")
    length: Sequence = Field(64, description="tokens of prompt and continuation")
    repeats: Count = Field(20, description="generations")

    @model_validator(mode="after")
    def _something_is_written(self):
        if self.length <= self.prompt_tokens:
            raise ValueError(f"length = {self.length} counts the prompt: it must exceed {self.prompt_tokens}")
        return self


class Latency(Section):
    """Generations that are timed, by turns with the original's."""

    prompt_tokens: Count = Field(128, description="tokens of the prompt")
    new_tokens: Count = Field(128, description="tokens of the continuation")
    warmup: Natural = Field(3, description="generations before any is timed")
    repeats: Several = Field(20, description="generations that are timed")
    seed_protocol: SeedLatency | None = Field(None, description="{} measures as the research notes did, too")


class SummaryTraining(Repeated):
    """Training of all weights on article/summary pairs, the loss on the summary alone, once for each seed."""

    learning_rate: Rate = Field(description="of all weights")


class SeedSummaries(Section):
    """The research notes' way: articles cut at `article_tokens`, the prompt counted as part of the summary."""

    article_tokens: Count = Field(128, description="tokens of an article")
    new_tokens: Count = Field(60, description="tokens of a summary")


class Summarize(Section):
    """Summaries of articles by beam search, scored by ROUGE."""

    format: str = Field(SUMMARY_FORMAT, description="the prompt, in which {article} stands once")
    articles: Count = Field(100, description="test articles")
    context: Count = Field(1024, description="tokens of prompt and summary; an article is cut to fit")
    new_tokens: Count = Field(60, description="tokens of a summary")
    beams: Count = Field(3, description="beams of the search")
    no_repeat_ngram: Natural = Field(2, description="length of the n-grams that may not repeat; 0 allows all")
    no_repeat_over: Literal["continuation", "all"] = Field(
        "all",
        description="are the article's n-grams forbidden, too (`all`, the way of transformers and the research notes)",
    )
    batch_size: Count = Field(8, description="articles of a forward pass")
    training: SummaryTraining | None = Field(None, description="null summarises untrained")
    seed_protocol: SeedSummaries | None = Field(None, description="{} measures as the research notes did, too")

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
    """What every profile says. Every section is there, as DVC asks for it; {} leaves all of it at its defaults."""

    task: Literal["language", "image_classification"] = Field("language", description="what the model is studied at")
    runtime: Runtime
    base: Base
    correlate: Correlate


class LanguageProfile(Profile):
    """A study of language modelling."""

    prepare: Prepare
    reviews: ReviewSet
    extract: Extract
    search: Search
    finetune: Finetune
    sentiment: HeadRecipe
    perplexity: Perplexity
    generate: Generate
    latency: Latency
    articles: ArticlePairs
    summarize: Summarize

    @property
    def lengths(self) -> dict[str, int]:
        """Key -> tokens, for every length that must fit into the model's positions."""
        latency, summaries = self.latency, self.summarize
        found = {
            "reviews.max_tokens": self.reviews.max_tokens,
            "extract.sequence_length": self.extract.sequence_length,
            "search.context": self.search.context,
            "finetune.sequence_length": self.finetune.sequence_length,
            "perplexity.context": self.perplexity.context,
            "generate.new_tokens + 1 for a prompt": self.generate.new_tokens + 1,
            "latency.prompt_tokens + new_tokens": latency.prompt_tokens + latency.new_tokens,
            "summarize.context": summaries.context,
        }
        if protocol := self.perplexity.seed_protocol:
            found["perplexity.seed_protocol.length"] = protocol.length
        if protocol := latency.seed_protocol:
            found["latency.seed_protocol.length"] = protocol.length
        if protocol := summaries.seed_protocol:
            found["summarize.seed_protocol.article_tokens + new_tokens"] = protocol.article_tokens + protocol.new_tokens
        return found

    @model_validator(mode="after")
    def _there_are_enough_rows(self):
        protocol, text, pairs = self.perplexity.seed_protocol, self.prepare.source, self.articles.source
        asked = [("summarize.articles", self.summarize.articles, "articles", pairs.most)]
        if protocol:
            asked.append(("perplexity.seed_protocol.rows", protocol.rows, "prepare", text.most))
        for key, rows, section, most in asked:
            if most is not None and rows > most:
                raise ValueError(f"{key} = {rows}: {section}.source.test has {most}, so 1 to {most} are allowed")
        if self.summarize.training and pairs.train is None:
            raise ValueError("summarize.training needs pairs to learn from: articles.source.train is null")
        return self


class Pretrain(Section):
    """The recipe of the bundled model."""

    stories: Count = Field(description="stories of the training text")
    seed: Seed = Field(description="of the stories and the weights")
    vocabulary: int = Field(ge=257, lt=2**31, description="tokens of the byte-level BPE")
    layers: Count = Field(description="blocks of the GPT-2")
    heads: Count = Field(description="attention heads of a block")
    width: Count = Field(description="size of the hidden states")
    context: Count = Field(description="tokens of a sequence, and positions of the model")
    epochs: Count = Field(description="passes over the text")
    batch_size: Count = Field(description="sequences of a step")
    learning_rate: Rate = Field(description="of all weights")
    threads: Count = Field(description="of torch on the CPU; the weights' bytes depend on it")


class PretrainDigits(Section):
    """The recipe of the bundled ViT."""

    seed: Seed = Field(description="of the weights, the order of images and their changes")
    layers: Count = Field(description="blocks of the ViT")
    heads: Count = Field(description="attention heads of a block")
    width: Count = Field(description="size of the hidden states; an FFN has four times as many neurons")
    patch: Literal[1, 2, 4, 8] = Field(description="pixels of a patch's side")
    initializer_range: float = Field(gt=0, description="standard deviation of new weights")
    epochs: Count = Field(description="passes over the train split")
    batch_size: Count = Field(description="images of a step")
    learning_rate: Rate = Field(description="of all weights")
    dropout: float = Field(ge=0, lt=1, description="of hidden states, in the training alone")
    weight_decay: float = Field(ge=0, le=10, description="AdamW's, of matrices")
    label_smoothing: float = Field(ge=0, lt=1, description="share of a label's weight that all labels get")
    rotation: float = Field(ge=0, description="degrees at most")
    zoom: float = Field(ge=0, lt=1, description="longer or shorter sides, as a share, at most")
    shear: float = Field(ge=0, description="slant as a share of the height, at most")
    shift: float = Field(ge=0, description="pixels at most")
    contrast: float = Field(ge=0, lt=1, description="paler or darker, as a share, at most")
    elastic: float = Field(ge=0, description="pixels that points of an image move, standard deviation")
    mixup: float = Field(ge=0, description="of the beta distribution of the shares in which two images are mixed")
    averaging: float = Field(ge=0, lt=1, description="of the kept weights: how much of their mean a step leaves")
    threads: Count = Field(description="of torch on the CPU; the weights' bytes depend on it")
