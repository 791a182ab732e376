"""What params.yaml may say of trainings: their steps and rates, and the budget of each kind of them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.core.settings.section import Count, Once, Rate, Section, Seed, Sequence, Several, whole_sequence


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
        return whole_sequence(self, "sequence_length")


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


class SummaryTraining(Repeated):
    """Training of all weights on article/summary pairs, the loss on the summary alone, once for each seed."""

    learning_rate: Rate = Field(description="of all weights")
