"""Which stages `make repro` runs, and in what order."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ALONE = ("latency",)  # what is timed: nothing else may use the machine meanwhile
LAST = "report"  # what follows every variant


@dataclass(frozen=True)
class Plan:
    """The stages of a graph by the way they are run, each list in the order of dvc.yaml. Frozen stages are in none."""

    shared: list[str]  # before any chain
    chains: dict[str, list[str]]  # by variant
    alone: list[str]  # one at a time, after all chains; the report is the last

    def stages(self) -> list[str]:
        """All stages, in the order in which they are begun."""
        return [*self.shared, *(stage for chain in self.chains.values() for stage in chain), *self.alone]


def plan(graph: Path, variants: Iterable[str]) -> Plan:
    """The plan of a dvc.yaml for the variants of params.yaml."""
    from ruamel.yaml import YAML

    entries = YAML(typ="safe", pure=True).load(graph.read_text(encoding="utf-8"))["stages"]
    each = [name for name, entry in entries.items() if "foreach" in entry]
    shared = [name for name, entry in entries.items() if "foreach" not in entry and not entry.get("frozen")]
    names = list(variants)
    return Plan(
        [name for name in shared if name != LAST],
        {variant: [f"{name}@{variant}" for name in each if name not in ALONE] for variant in names},
        [f"{name}@{variant}" for name in each if name in ALONE for variant in names]
        + [name for name in shared if name == LAST],
    )
