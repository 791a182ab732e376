"""Image classification: a model gives each image one of its labels, and accuracy is what users look at.

An example is an image with its label. The score that searches and trainings minimise is exp of the mean cross-entropy,
as perplexity is for language: 1 where every label is certain and right, the number of labels where all are alike.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.core.architecture import opening
from stages.core.architecture.depth import record_blocks
from stages.core.architecture.view import ModelView
from stages.core.images import table as tables
from stages.core.images.table import Batch, Images
from stages.core.process.artifacts import read_json
from stages.core.process.errors import UserError
from stages.core.settings.images import Answers, ExtractImages, FinetuneImages, LatencyImages
from stages.core.tasks import intervals, timing
from stages.core.tasks.interface import CalibrationRows, Measured
from stages.core.tasks.losses import exp_mean

ALIKE = 0.05  # of the spread of pixels: implementations of one resizing differ by less
TOP = 5  # an answer counts as right among so many best ones, where there are more labels


@dataclass(frozen=True)
class ImageClassification:
    """The task of image classification, an implementation of `stages.core.tasks.interface.Task`."""

    batch_size: int = 64

    unit = "images"
    block = 1  # an image says nothing of the next

    @classmethod
    def by(cls, section: Any) -> Self:
        """The task with a section's batches."""
        return cls(section.batch_size)

    @classmethod
    def calibration(cls, view: ModelView, table: Path, section: ExtractImages) -> CalibrationRows:
        """Images of the train split with as many tokens as the larger of the two budgets."""
        key = "max_tokens" if section.max_tokens >= section.moment_tokens else "moment_tokens"
        tokens = tokens_of_image(view, tables.read(table, 1))
        images = tables.read(table, -(-getattr(section, key) // tokens))
        if moved := _moved(view.model.config.id2label, dict(enumerate(images.names))):
            raise UserError(f"prepare.source {moved}: labels must be the model's own numbers")
        if len(images) * tokens < getattr(section, key):
            raise UserError(
                f"params.yaml: extract.{key} = {getattr(section, key)}: the train split has only {len(images)} images "
                f"of {tokens} tokens"
            )
        kept = images[: -(-section.moment_tokens // tokens)]
        return CalibrationRows(
            _Decoded(images.batches(section.batch_size)),
            {"rows": kept.whole().pixels, "tokens_per_row": torch.tensor(tokens)},
            {
                "sha256": images.digest(),
                "activation_tokens": section.max_tokens,
                "moment_tokens": section.moment_tokens,
                "images": len(images),
                "tokens_per_image": tokens,
            },
        )

    @classmethod
    def training(cls, table: Path, section: FinetuneImages) -> Images:
        """The images of the train split, decoded when they are needed."""
        return tables.read(table, section.max_images)

    @classmethod
    def held_out(cls, table: Path, section: Any) -> Images:
        """Images of a split."""
        return tables.read(table, section.max_images)

    @classmethod
    def other(cls, table: Path, section: Any) -> None:
        """None: images are of one kind."""
        return None

    @classmethod
    def units(cls, examples: Images) -> int:
        """One image."""
        return 1

    def inputs(self, batch: Batch) -> Tensor:
        """The pixels."""
        return batch.pixels

    def outputs(self, model: Any, batch: Batch, hidden_states: bool = False) -> Any:
        """The model's outputs for a batch: logits (n, labels), and hidden states whose last axis is d_model."""
        found = model(pixel_values=batch.pixels, output_hidden_states=hidden_states)
        if hidden_states:  # timm gives maps, (n, d_model, height, width)
            found.hidden_states = tuple(
                state.movedim(1, -1) if state.ndim == 4 else state for state in found.hidden_states
            )
        return found

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The cross-entropy in nats."""
        return functional.cross_entropy(outputs.logits.float(), batch.labels)

    def score(self, model: Any, held_out: Images, watch: Callable[[Iterable], Iterable] = iter) -> float:
        """exp of the mean cross-entropy of images."""
        return exp_mean([self.losses(model, held_out, watch)])

    def losses(self, model: Any, held_out: Images, watch: Callable[[Iterable], Iterable] = iter) -> np.ndarray:
        """The cross-entropy of every image."""
        return _losses(self.logits(model, held_out, watch), held_out.labels)

    def reference(self, model: Any, held_out: Images) -> Tensor:
        """The logs of the labels' probabilities, float64, (n, labels)."""
        return self.logits(model, held_out).double().log_softmax(1)

    def divergence(self, model: Any, held_out: Images, reference: Tensor) -> float:
        """The mean of KL(reference || model) over images, in nats, at least 0."""
        after = self.logits(model, held_out).double().log_softmax(1)
        return max(0.0, (reference.exp() * (reference - after)).sum(1).mean().item())

    def measure(
        self, model: Any, held_out: Images, others: Any, watch: Callable[[Iterable], Iterable] = iter
    ) -> Measured:
        """exp of the cross-entropy, accuracy with its 95% interval, macro F1, and accuracy among the five best."""
        logits, labels = self.logits(model, held_out, watch), held_out.labels
        losses, found = _losses(logits, labels), intervals.scores(labels, logits.argmax(1))
        figures = {
            "perplexity": exp_mean([losses]),
            **{key: found[key] for key in ("accuracy", "accuracy_low", "accuracy_high", "macro_f1")},
            "top5": top_accuracy(logits, labels),
        }
        return Measured(figures, losses)

    @torch.no_grad()
    def logits(self, model: Any, images: Images, watch: Callable[[Iterable], Iterable] = iter) -> Tensor:
        """The model's logits, float32, (n, labels), on the CPU.

        Raises UserError where a label is none of the model's, or a logit is not finite.
        """
        device, found = next(model.parameters()).device, []
        for part in watch(images.batches(self.batch_size)):
            found.append(model(pixel_values=part.whole().pixels.to(device)).logits.float().cpu())
            if not found[-1].isfinite().all():
                raise UserError(f"a logit is not finite in batch {len(found) - 1} of images: the model is broken")
        known = found[0].shape[1]
        if images.labels.max() >= known:
            raise UserError(f"a label is {int(images.labels.max())}, and the model knows labels 0 to {known - 1}")
        return torch.cat(found)

    @classmethod
    def external(cls, model: str, revision: str | None, original: ModelView, processor: Path) -> Any:
        """Another classifier of the same labels, which reads what the original's image processor makes."""
        found = opening.read_external(model, revision)
        wanted, labels = original.model.config.num_labels, getattr(found.config, "num_labels", None)
        if ModelView(found).family.task != original.family.task or labels != wanted:
            raise UserError(
                f"params.yaml: surgery.model = {model!r} has {labels} labels and the model under study has {wanted}: "
                "only classifiers of the same labels can be compared"
            )
        if other := _otherwise(original.model.config.id2label, found.config.id2label):
            raise UserError(f"params.yaml: surgery.model = {model!r} {other}: its answers would be taken for others")
        own = tables.processor(read_json(processor / "preprocessor_config.json"))
        if (other := opening.read_image_processor(model, revision)) and _reads_otherwise(own, other):
            raise UserError(
                f"params.yaml: surgery.model = {model!r} reads images in another size, range or normalisation than "
                "the model under study, whose image processor makes all pixels: only models that read alike can be "
                "compared"
            )
        return found

    @classmethod
    def samples(
        cls, model: Any, processor: Path, table: Path, section: Answers, watch: Callable[[Iterable], Iterable] = iter
    ) -> list[dict[str, Any]]:
        """For each of the first images of a split its row, its label, the model's answer and that one's probability."""
        images = cls.held_out(table, section)
        score, predicted = cls.by(section).logits(model, images, watch).softmax(1).max(1)
        columns = images.labels.tolist(), predicted.tolist(), score.tolist()
        keys = ("row", "label", "predicted", "score")
        return [dict(zip(keys, row)) for row in zip(range(len(images)), *columns)]

    @classmethod
    def time(
        cls, models: dict[str, Any], table: Path, section: LatencyImages, device: Any,
        watch: Callable[[Iterable], Iterable] = iter,
    ) -> dict[str, Any]:  # fmt: skip
        """Images a second by the size of the batch; the speed-up is that of the largest."""
        found: dict[str, Any] = {}
        for size in sorted(section.batch_sizes):
            images = tables.read(table, size)
            rows = torch.arange(size).remainder(len(images)).tolist()  # a short split is gone through again
            pixels = images.pixels(rows).to(device)
            turns = timing.passes(models, pixels, section.warmup, section.repeats, watch)
            for name, seconds in turns.items():
                median, spread = timing.spread_ms(seconds)
                before = "original_" if name == "original" else ""
                found |= {f"{before}ms_{size}": median, f"{before}iqr_ms_{size}": spread}
                found[f"{before}images_per_second_{size}"] = 1000 * size / median
            found["speedup"] = timing.ratio(turns["original"], turns["variant"])
        return found


@torch.no_grad()
def tokens_of_image(view: ModelView, image: Images) -> int:
    """How many tokens of an image every FFN sees: the fewest that a layer has."""
    with record_blocks(view, range(view.depth)) as records:
        view.run(image.whole().pixels.to(view.device))
    return min(len(record["ffn"][0]) for record in records.values())


def _losses(logits: Tensor, labels: Tensor) -> np.ndarray:
    """The cross-entropy of each row of logits (n, labels), in nats, float64, (n,)."""
    return functional.cross_entropy(logits.double(), labels, reduction="none").numpy()


def _otherwise(own: dict[int, str], other: dict[int, str]) -> str:
    """What is wrong with the names of another model's labels; nothing where one of the two has no names of its own."""
    if any(names[0] == "LABEL_0" for names in (own, other)):
        return ""
    if not _numbers(own).keys() & _numbers(other).keys():
        return f"has no label {own[0]!r} nor any other of the model under study"
    return _moved(own, other)


def _moved(own: dict[int, str], other: dict[int, str]) -> str:
    """Which name of a label is another number's elsewhere, in words; nothing where none is."""
    here, there = _numbers(own), _numbers(other)
    moved = next((name for name in here if there.get(name, here[name]) != here[name]), None)
    if moved is None:
        return ""
    return f"has {own[here[moved]]!r} as label {there[moved]}, the model under study as {here[moved]}"


def _numbers(names: dict[int, str]) -> dict[str, int]:
    """Name in small letters -> label; without names of two labels, as ImageNet's cranes, bird and machine."""
    small = {number: name.lower() for number, name in names.items()}
    counts = Counter(small.values())
    return {name: number for number, name in small.items() if counts[name] == 1}


def _reads_otherwise(own: Any, other: Any) -> bool:
    """Whether two image processors make other pixels of the same image."""
    from PIL import Image

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    one, two = (processor([noise], return_tensors="pt")["pixel_values"].float() for processor in (own, other))
    return one.shape != two.shape or bool((one - two).abs().mean() > ALIKE * one.std())


def top_accuracy(logits: Tensor, labels: Tensor, count: int = TOP) -> float:
    """The share of images whose label is among the `count` likeliest."""
    best = logits.topk(min(count, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1).double().mean().item()


class _Decoded(Sequence):
    """The pixels of runs of images, each run decoded when it is asked for."""

    def __init__(self, runs: list[Images]):
        self.runs = runs

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, number: int) -> Tensor:
        return self.runs[number].whole().pixels

    def __iter__(self) -> Iterator[Tensor]:
        return (run.whole().pixels for run in self.runs)
