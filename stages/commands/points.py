"""The points of the curve of size against perplexity: what `make curve` measures of each method at each size."""

import statistics
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.commands import opened
from stages.core.architecture.shape import Shape
from stages.core.architecture.view import ModelView
from stages.core.forms import checkpoint, counting
from stages.core.forms.structure import Sharing
from stages.core.reporting import paired
from stages.core.settings import params
from stages.core.settings.recoveries import Distill, Recovery
from stages.core.shrinking import curve
from stages.core.shrinking.arranging import Surveyed
from stages.core.shrinking.limits import MOMENTS
from stages.core.shrinking.mixing import Tried
from stages.core.shrinking.probes import Probed
from stages.core.tasks.losses import blocks, exp_mean
from stages.core.training.files import Outputs

RATES = (3.0, 1.0, 0.3, 0.1)  # times the profile's own
HIDDEN = 20.0  # weight of the control's hidden states
CONTROL = Outputs.within(Path("artifacts/control")).checkpoint


def longest_window(profile: str, shape: Shape) -> int:
    """The most layers of a window: as many as a stage of the model has, and as were aligned with each other."""
    return min(shape.deepest.depth, params.section(profile, "correlate").reach)


class Start(NamedTuple):
    """An untrained model of a method.

    forms: those that it may have, where the search of a mixture has found it. validation: its perplexity.
    """

    made: curve.Made
    forms: str
    validation: float


class End(NamedTuple):
    """The perplexities of a model after a recovery. helped: whether that kept another state than the start."""

    validation: float
    test: float
    helped: bool


class Measuring:
    """The study of this repository, with what measures a model of it."""

    def __init__(self):
        self.study = opened.Opened.here(MOMENTS)
        self.judge = self.study.judge("search", "validation")
        self.losses, self.block = self.study.losses("perplexity", "test")
        self.longest = longest_window(self.study.profile, self.study.view.shape)
        self.known = self.study.view, self.study.calibration, self.judge

    @cached_property
    def teacher(self) -> Any:
        """The control."""
        return checkpoint.load(CONTROL)[0].to(self.study.device)

    @cached_property
    def recover(self) -> Callable:
        """Trains a model as `finetune` does."""
        return self.study.recoverer()

    @cached_property
    def original(self) -> Start:
        """The original."""
        return Start(curve.Made(self.study.view, Sharing(), None), "", self.judge.score(self.study.view))

    @cached_property
    def known_losses(self) -> np.ndarray:
        """The original's on the test split."""
        return self.losses(self.study.view)

    def test(self, view: ModelView) -> float:
        """A model's perplexity on the test split."""
        return exp_mean([self.losses(view)])

    def probe(self) -> Probed:
        """What each matrix alone costs in each form."""
        return curve.probe(*self.known)

    def survey(self, smallest: float) -> Surveyed:
        """What arrangements of layers cost, for all shares down to the smallest."""
        return curve.survey(*self.known, smallest, self.longest)

    def tried(self, share: float, probed: Probed, surveyed: Surveyed) -> list[Tried]:
        """What the search of a mixture tries at a share of the original's parameters."""
        return curve.tried(share, *self.known, probed, surveyed, self.longest)

    def point(self, name: str, share: float, seeds: list[int] | None, kinds: Sequence[Tried] = ()) -> dict:
        """The row of a method at a share of the original's parameters.

        seeds: of its recovery, None without one. kinds: what it may be, the best first, where the search of a mixture
        has found it. Recovered are the first and, of the others, the one that is best after one recovery.
        """
        starts = [self.start(name, share, kinds[0] if kinds else None)]
        found = self.row(name, starts[0]) | {"size": share, "speed": curve.METHODS[name].speed}
        if kinds:
            found |= {"forms": starts[0].forms}
        if seeds is None:
            return found
        spec = curve.METHODS[name].variant(share).finetune

        def recovered(kind: Tried) -> float:
            start = self.start(name, share, kind)
            return min(self.end(start, recipe, seeds[0]).validation for recipe in arms(spec, start, [1.0]))

        if others := kinds[1:]:
            # Made a second time, so that no more than two are in memory.
            starts.append(self.start(name, share, min(others, key=recovered)))
        return found | self.trained(starts, spec, seeds)

    def start(self, name: str, share: float, kind: Tried | None) -> Start:
        """The untrained model of a method: of all its surgeries the one that validation text chooses."""
        forms = "+".join(kind.forms) if kind else ""
        made = curve.make(name, share, *self.known[:2], kind)
        return min((Start(one, forms, self.judge.score(one.view)) for one in made), key=attrgetter("validation"))

    def row(self, name: str, start: Start) -> dict:
        """What a model stores and its perplexities, with the margin of the one on test text: see `paired.margin`."""
        stored = counting.count(start.made.view)["parameters"]
        share = stored / self.study.view.shape.parameters
        losses = self.losses(start.made.view)
        margin = paired.margin(losses, self.known_losses, blocks(len(losses), self.block))
        scores = {
            "validation": start.validation,
            "test": exp_mean([losses]),
            "margin": "" if margin is None else margin,
        }
        return {"method": name, "stored": stored, "share": share} | scores

    def originals(self, seeds: list[int] | None) -> list[dict]:
        """The original; with seeds also trained as stage `control` does, and with the control as teacher."""
        row = self.row("original", self.original) | {"speed": curve.ORDINARY}
        if seeds is None:
            return [row]
        plain = {"validation_after": self.judge.score(self.teacher), "test_after": self.test(self.teacher)}
        spec = Recovery(teacher="control", distill=Distill(logits=0.5, hidden=HIDDEN))
        return [row | plain, row | {"method": "original_distilled"} | self.trained([self.original], spec, seeds)]

    def trained(self, starts: list[Start], spec: Recovery, seeds: list[int]) -> dict:
        """The perplexities after recovery: means over the seeds, `spread_after` their standard deviation on test.

        The validation split chooses start and recipe by the first seed. The rate is 0 where no training helped.
        """
        tries = [(start, recipe) for start in starts for recipe in arms(spec, start)]
        found = [self.end(*each, seeds[0]) for each in tries]
        best = min(range(len(tries)), key=lambda number: found[number].validation)
        start, recipe = tries[best]
        every = [found[best], *(self.end(start, recipe, seed) for seed in seeds[1:])]
        means = {f"{split}_after": statistics.mean(getattr(one, split) for one in every) for split in End._fields[:2]}
        spread = {"spread_after": statistics.stdev(one.test for one in every)} if len(every) > 1 else {}
        forms = {"forms_after": start.forms} if start.forms else {}
        rate = recipe.rate if found[best].helped else 0.0
        return means | spread | forms | {"rate": rate, "hidden": recipe.distill.hidden, "seeds": len(every)}

    def end(self, start: Start, recipe: Recovery, seed: int) -> End:
        """A model after a recovery."""
        tried = start.made.view.copy()
        history = self.recover(tried, start.made.sharing, self.teacher, recipe, seed, start.made.kept)
        first, *later = (one["value"] for one in history.validation)
        return End(self.judge.score(tried), self.test(tried), min(later) < first)


def arms(spec: Recovery, start: Start, rates: Sequence[float] = RATES) -> list[Recovery]:
    """The recipes that are tried: `spec` at every rate, with hidden states; where layers are gone, also without."""
    weights = [HIDDEN] if start.made.kept is None else [0.0, HIDDEN]
    return [
        spec.model_copy(update={"rate": rate, "distill": spec.distill.model_copy(update={"hidden": hidden})})
        for hidden in weights
        for rate in rates
    ]
