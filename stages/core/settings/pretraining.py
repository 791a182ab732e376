"""What params.yaml may say of the bundled models: how they were trained."""

from typing import Literal

from pydantic import Field

from stages.core.settings.section import Count, Rate, Section, Seed


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
