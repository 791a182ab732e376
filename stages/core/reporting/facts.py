"""The figures to take away from a study, which stand at the head of its report."""

from dataclasses import dataclass

from stages.core.reporting import tables
from stages.core.reporting.study import Study, noise


@dataclass(frozen=True)
class Fact:
    """One figure to take away: its name, its value, and a line on it."""

    name: str
    value: str
    note: str


def facts(study: Study) -> list[Fact]:
    """The control, the smallest variant near it, and the fastest one; "none" where none is smaller or faster."""
    known = study.has("perplexity", "accuracy_after")
    what, value = "perplexity", tables.perplexity(study.control)
    if known:
        what, value = "accuracy", f"{study.perplexity['original']['accuracy_after']:.3f}"
    control = f"{what} of `original`, fine-tuned like every variant"
    return [Fact("Control", value, control), _smallest(study), _fastest(study)]


def _smallest(study: Study) -> Fact:
    """For images near in accuracy, whose points are what their readers count in."""
    if study.has("perplexity", "accuracy_after"):
        title = "Smallest within one point of the control"
        least = study.perplexity["original"]["accuracy_after"] - 0.01
        near = [name for name in study.variants if study.perplexity[name]["accuracy_after"] >= least]
    else:
        title = "Smallest within 5% of the control"
        near = [name for name in study.variants if study.perplexity[name]["after"] <= 1.05 * study.control]
    name = min(near, key=lambda name: study.sizes[name]["parameters"])
    if name == "original":
        return Fact(title, "none", "every variant that stores less is further from it")
    ratio = study.sizes[name]["parameter_ratio"]
    return Fact(title, f"{ratio:.0%}", f"of the parameters stored: {_with_score(study, name)}")


def _fastest(study: Study) -> Fact:
    name = max(study.variants, key=lambda name: study.latency[name]["speedup"])
    speedup = f"{study.latency[name]['speedup']:.2f}×"
    if study.latency[name]["speedup"] <= 1 + noise(study):
        itself = study.latency["original"]["speedup"]
        return Fact("Fastest", "none", f"no variant is told from `original` beside itself ({itself:.2f}×)")
    return Fact("Fastest", speedup, _with_score(study, name))


def _with_score(study: Study, name: str) -> str:
    found = study.perplexity[name]
    if "accuracy_after" in found:
        return f"`{name}`, accuracy {found['accuracy_after']:.3f}"
    return f"`{name}`, perplexity {tables.perplexity(found['after'])}"
