"""Which stages `make repro` runs, and in what order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ALONE = ("latency",)  # what is timed: nothing else may use the machine meanwhile
LAST = "report"  # what follows every variant


@dataclass(frozen=True)
class Plan:
    """The stages of a graph by the way they are run, each list in the order of dvc.yaml. Frozen stages are in none."""

    shared: list[str]  # before any chain
    chains: dict[str, list[str]]  # by variant
    alone: list[str]  # one at a time, after all chains; the report is the last
    branches: list[list[str]] = field(default_factory=list)  # of `shared`: none needs what another one makes

    def trunk(self) -> list[str]:
        """The shared stages that branches follow."""
        return [stage for stage in self.shared if all(stage not in branch for branch in self.branches)]

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
        branches({name: entries[name] for name in shared if name != LAST}),
    )


def branches(entries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """What several processes can run at once of stages as dvc.yaml describes them, those of most stages first.

    A stage that several follow, and all before it, are in no branch. None where there is only one.
    """

    def needs(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        return any(_meet(dep, out) for dep in _paths(entry, "deps") for out in _outs(other))

    before = {name: {other for other in entries if needs(entry, entries[other])} for name, entry in entries.items()}
    # What a stage needs through another one, too, makes no fork.
    deeper = {name: set().union(*(_ancestors(before, other) for other in needed)) for name, needed in before.items()}
    before = {name: before[name] - deeper[name] for name in entries}
    common = {name for name in entries if sum(name in needed for needed in before.values()) > 1}
    while earlier := {other for name in common for other in before[name]} - common:
        common |= earlier
    found: list[list[str]] = []
    for name in entries:
        if name not in common:
            near = [branch for branch in found if before[name] & set(branch)]
            found = [branch for branch in found if branch not in near] + [[*(s for b in near for s in b), name]]
    return sorted(found, key=len, reverse=True) if len(found) > 1 else []


def _ancestors(before: Mapping[str, set[str]], name: str) -> set[str]:
    """All that must have run before a stage."""
    return before[name].union(*(_ancestors(before, other) for other in before[name]))


def _paths(entry: Mapping[str, Any], key: str) -> list[str]:
    """The paths in a list of dvc.yaml, where one with options is a mapping."""
    return [path if isinstance(path, str) else next(iter(path)) for path in entry.get(key, [])]


def _outs(entry: Mapping[str, Any]) -> list[str]:
    return [path for key in ("outs", "metrics", "plots") for path in _paths(entry, key)]


def _meet(one: str, other: str) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
