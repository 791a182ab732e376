"""All that one run found, and the plain figures that summaries, plots and pages are made of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.core.reporting.paired import factor
from stages.core.reporting.published import Published

Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """What the stages measured. A `Figures` has one entry a variant, in the order of params.yaml.

    A figure that the model's task does not have is absent: what a stage did not measure is an empty mapping. margins:
    of each variant's log perplexity after fine-tuning beside the control's; untold: variants whose order the test split
    leaves open; see `stages.core.reporting.paired`.
    """

    profile: str
    provenance: Mapping[str, Any]
    overlap: Mapping[str, Mapping[str, int]]
    calibration: Mapping[str, Any]
    alignment: Mapping[str, Any]
    windows: Figures
    sizes: Figures
    recovery: Figures
    training: Mapping[str, list[dict[str, float]]]
    perplexity: Figures
    margins: Mapping[str, float]
    untold: list[tuple[str, str]]
    latency: Figures
    sentiment: Figures
    summarization: Figures
    samples: Mapping[str, list[Mapping[str, Any]]]
    published: Published
    images: Mapping[int, bytes] = field(default_factory=dict)  # those that the page shows, by their row, as files
    label_names: list[str] = field(default_factory=list)

    @property
    def variants(self) -> list[str]:
        return list(self.sizes)

    @property
    def unit(self) -> str:
        """What trainings and searches count: `tokens`, or `images`."""
        return next(unit for unit in ("tokens", "images") if unit in self.recovery["original"])

    @property
    def prompts(self) -> list[str]:
        """What samples begin with, for each sample; empty where they are no texts."""
        return [row["prompt"] for rows in self.samples.values() for row in rows if "prompt" in row]

    def has(self, figures: str, key: str) -> bool:
        """Whether a figure was measured; what was measured of the original was measured of all."""
        return key in getattr(self, figures)["original"]

    @property
    def control(self) -> float:
        """Perplexity of the original model after the fine-tuning that every variant gets."""
        return self.perplexity["original"]["after"]

    def to_control(self, name: str) -> float:
        """A variant's perplexity after fine-tuning over the control's; with several seeds, that of their mean."""
        return self.perplexity[name]["after"] / self.control

    def bounds(self, name: str) -> tuple[float, float] | None:
        """The 95% interval of `to_control` by the test split and the first seed; None where that is too short."""
        if (margin := self.margins.get(name)) is None:
            return None
        return self.to_control(name) * factor(-margin), self.to_control(name) * factor(margin)


def summary(study: Study) -> dict[str, dict[str, Any]]:
    """Variant -> its size, perplexity before and after fine-tuning, speed and tasks; the content of summary.json."""
    rows = {
        name: {
            **study.sizes[name],
            "perplexity": _of(study.perplexity[name], "before", "after", "other_before", "other_after")
            | {"to_control": study.to_control(name)}
            | ({"margin": study.margins[name]} if name in study.margins else {}),
            "latency": _of(study.latency[name], "prefill_ms", "decode_ms_per_token", "speedup"),
            "accuracy": _of(study.perplexity[name], "accuracy_before", "accuracy_after", "top5_after"),
            "sentiment": _of(study.sentiment[name], "accuracy"),
            "summarization": _of(study.summarization[name], "rouge1", "rouge2", "rougeL", "rougeLsum"),
        }
        for name in study.variants
    }
    return {name: {key: value for key, value in row.items() if value != {}} for name, row in rows.items()}


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other equals or beats in both coordinates (less is better), by the first one.

    Of equal points the first stays.
    """
    kept: list[str] = []
    for name in sorted(points, key=lambda name: points[name]):
        if not kept or points[name][1] < points[kept[-1]][1]:
            kept.append(name)
    return kept


def by_size(study: Study) -> list[str]:
    """The variants that no smaller or equal one beats in perplexity after fine-tuning, smallest first."""
    return pareto({name: (study.sizes[name]["parameters"], study.perplexity[name]["after"]) for name in study.variants})


def by_speed(study: Study) -> list[str]:
    """The variants that none as fast beats in perplexity after fine-tuning, fastest first.

    What is as near to 1 as the original beside itself is as fast as the original.
    """
    within = noise(study)
    speeds = {name: found["speedup"] for name, found in study.latency.items()}
    told = {name: speed if abs(speed - 1) > within else 1.0 for name, speed in speeds.items()}
    return pareto({name: (-told[name], study.perplexity[name]["after"]) for name in study.variants})


def noise(study: Study) -> float:
    """How far from 1 the speed-up of the original beside itself is: what a speed-up is at least off by."""
    return abs(study.latency["original"]["speedup"] - 1)


def size_rows(study: Study) -> list[dict[str, Any]]:
    """A point for every variant before and after fine-tuning."""
    return [
        {
            "variant": name,
            "stage": stage,
            "parameters_millions": study.sizes[name]["parameters"] / 1e6,
            "perplexity": study.perplexity[name][stage],
        }
        for name in study.variants
        for stage in ("before", "after")
    ]


def speed_rows(study: Study) -> list[dict[str, Any]]:
    """A point for every variant after fine-tuning."""
    return [
        {
            "variant": name,
            "stage": "after",
            "speedup": study.latency[name]["speedup"],
            "perplexity": study.perplexity[name]["after"],
        }
        for name in study.variants
    ]


def training_rows(study: Study) -> list[dict[str, Any]]:
    """Every step's loss in a recovery."""
    return [
        {"variant": name, "tokens": row["tokens"], "loss": row["loss"]}
        for name, rows in study.training.items()
        for row in rows
    ]


def validation_rows(study: Study) -> list[dict[str, Any]]:
    """Every evaluation at the validation split during a recovery; `tokens` counts the study's unit."""
    return [
        {"variant": name, "tokens": evaluation[study.unit], "perplexity": evaluation["perplexity"]}
        for name, recovery in study.recovery.items()
        for evaluation in recovery["looks"]
    ]


def window_rows(study: Study) -> list[dict[str, Any]]:
    """Every layout that a search scored: how many windows, the first one's first layer and size."""
    return [
        {
            "variant": name,
            "window": layout(candidate["windows"]),
            "windows": len(candidate["windows"]),
            "first_layer": candidate["windows"][0][0],
            "layers": candidate["windows"][0][1] - candidate["windows"][0][0] + 1,
            "perplexity": candidate["perplexity"],
        }
        for name, found in study.windows.items()
        for candidate in found["candidates"]
    ]


def correlation_rows(study: Study) -> list[dict[str, Any]]:
    """Mean correlation of every two layers at each site: matched, what of it is above chance, and as numbered."""
    return [
        {
            "site": site,
            "first": int(key.split("-")[0]),
            "second": int(key.split("-")[1]),
            "matched": pair["matched"],
            "above_chance": pair["matched"] - found["null"],
            "as_numbered": pair["unmatched"],
        }
        for site, found in study.alignment["sites"].items()
        for key, pair in found["pairs"].items()
    ]


def alone(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidates of a search that are one window, scored as its method makes it, not with the ranks of a budget."""
    return [each for each in found["candidates"] if len(each["windows"]) == 1 and "budget" not in each]


def layout(windows: Iterable[Iterable[int]]) -> str:
    """Windows as people write them: 1-4+7-10."""
    return "+".join(f"{first}-{last}" for first, last in windows)


def _of(figures: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: figures[key] for key in keys if key in figures}
