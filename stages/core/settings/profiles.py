"""What a profile in params.yaml may say: one typed section for each stage that reads one.

The defaults are those of GPT-2 on a GPU box: a profile says what differs. The sections of a profile for images that
differ from those for language are in stages.core.settings.images.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.core.settings.section import Count, Natural, Once, Section, Seed, Sequence, Several, Text, whole_sequence
from stages.core.settings.texts import ArticlePairs, Prepare, ReviewSet
from stages.core.settings.trainings import Finetune, HeadRecipe, SummaryTraining

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
        return whole_sequence(self, "context")


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
        return whole_sequence(self, "context")


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
