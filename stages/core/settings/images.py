"""What a profile for image classification may say: the sections that differ from those for language."""

from typing import Annotated, Literal

from pydantic import Field

from stages.core.settings.profiles import Profile, Site
from stages.core.settings.section import Count, Natural, Once, Section, Seed, Several, Text
from stages.core.settings.texts import Loaded
from stages.core.settings.trainings import LearningRate, Repeated


class Patterns(Section):
    """Images of made-up patterns, one a label, with noise: one seed and a number of images for each split."""

    kind: Literal["patterns"]
    seed: Seed = Field(description="of patterns and noise")
    labels: Several = Field(description="patterns")
    side: Count = Field(8, description="pixels of a side")
    train: Count = Field(description="images to train on")
    validation: Count = Field(description="images to choose windows and states by")
    test: Count = Field(description="images to measure on")


class Digits(Section):
    """The handwritten digits of scikit-learn: 1,000 images to train on, 257 to choose by and 540 to measure on."""

    kind: Literal["digits"]
    file: Text = Field(description="the table of this repository, data/digits/digits.parquet")


class ImageDataset(Loaded):
    """Images with labels. For folders with one folder a class, `path` is `imagefolder` or the folder itself."""

    image: str = Field("image", description="the column with the image")
    label: str = Field("label", description="the column with the label, a whole number from 0")
    train: str = Field("train", description="rows to train on, as train, train[:80%] or train[100:200]")
    validation: str = Field("validation", description="rows to choose windows and states by")
    test: str = Field("test", description="rows to measure on")


class PrepareImages(Section):
    """Which images are classified."""

    source: Annotated[Patterns | Digits | ImageDataset, Field(discriminator="kind")]


class ExtractImages(Section):
    """What is recorded of the model on calibration images: activations to align by, moments to fit to.

    A row is a token as the FFNs see it: a patch, or a special token beside the patches. Where layers see different
    numbers of tokens, as in Swin, each gives as many of an image's as the layer with the fewest, evenly spread.
    """

    sites: Annotated[list[Site], Once] = Field(
        ["pre_activation", "post_activation"],
        min_length=1,
        description="activations that neurons may be matched by",
    )
    max_tokens: Several = Field(4000, description="tokens whose activations are kept")
    moment_tokens: Several = Field(131072, description="tokens that the moments are taken over")
    batch_size: Count = Field(32, description="images of a forward pass")


class SearchImages(Section):
    """Windows are compared on the head of the validation split, by exp of the cross-entropy."""

    max_images: Count | None = Field(2048, description="images of the validation split; null is all of it")
    batch_size: Count = Field(64, description="images of a forward pass")


class ValidationImages(Section):
    """How often, and on how many images, the validation split is scored."""

    times: Count = Field(8, description="evaluations in a training")
    max_images: Count | None = Field(2048, description="images of the validation split; null is all of it")


class FinetuneImages(Repeated):
    """The budget and recipe that every variant, the original included, is fine-tuned with, once for each seed."""

    epochs: Count = Field(2, description="passes over the train split")
    batch_size: Count = Field(32, description="images of a forward and backward pass")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    max_images: Count | None = Field(None, description="images of the train split; null is all of it")
    dropout: float = Field(0.0, ge=0, lt=1, description="of every dropout layer, whatever config.json says; 0 is off")
    learning_rate: LearningRate = LearningRate()
    validation: ValidationImages = ValidationImages()


class ScoreImages(Section):
    """Accuracy, top-5 accuracy and exp of the cross-entropy on the test split."""

    batch_size: Count = Field(64, description="images of a forward pass")
    max_images: Count | None = Field(None, description="images of the test split; null is all of it")


class Answers(Section):
    """Every variant's answers on the head of the test split."""

    batch_size: Count = Field(64, description="images of a forward pass")
    max_images: Count | None = Field(1000, description="images of the test split; null is all of it")


class LatencyImages(Section):
    """Forward passes of one image and of several, timed by turns with the original's."""

    batch_sizes: Annotated[list[Count], Once] = Field(
        [1, 32], min_length=1, description="images of a pass, one figure for each"
    )
    warmup: Natural = Field(3, description="passes before any is timed")
    repeats: Several = Field(20, description="passes that are timed")


class ImageProfile(Profile):
    """A study of image classification. What means nothing for images is null, as DVC asks for every section."""

    prepare: PrepareImages
    reviews: None = Field(description="null: images have no reviews")
    extract: ExtractImages
    search: SearchImages
    finetune: FinetuneImages
    sentiment: None = Field(description="null: images have no sentiment")
    perplexity: ScoreImages
    generate: Answers
    latency: LatencyImages
    articles: None = Field(description="null: images have no articles")
    summarize: None = Field(description="null: images have no summaries")

    @property
    def lengths(self) -> dict[str, int]:
        """No length in tokens: a model says itself how many tokens it makes of an image."""
        return {}
