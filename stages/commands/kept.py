"""What `make curve` has found, on disk: stopped, it goes on from there; asked for other sizes, it begins there."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch

from stages.commands.opened import MODEL, MOMENTS, PERMUTATIONS, SPLITS
from stages.core.process import devices
from stages.core.process.artifacts import read_json, write_text
from stages.core.process.errors import UserError
from stages.core.settings import params
from stages.core.shrinking.arranging import Surveyed
from stages.core.shrinking.budgets import Matrix
from stages.core.shrinking.making import Layers
from stages.core.shrinking.mixing import Tried
from stages.core.shrinking.options import Option
from stages.core.shrinking.probes import Probed
from stages.core.shrinking.window_search import Layout
from stages.core.training import resuming

FOLDER = Path("artifacts/curve")
READ = ("runtime", "correlate", "search", "finetune", "perplexity")  # sections that a figure of the curve depends on


class Kept:
    """What methods of `points.Measuring` gave, by method and arguments: a JSON file each, which keeps every bit.

    A damaged file counts as none.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def here(cls, profile: str, control: Path) -> Self:
        """What the same code found on the same machine with the same params and files; what others found stays, too.

        control: the checkpoint of the teacher.
        """
        runtime = params.section(profile, "runtime")
        machine = devices.environment(devices.start(runtime), runtime.precision)
        facts = [machine, *(params.section(profile, name).model_dump() for name in READ)]
        inputs = [MODEL, PERMUTATIONS, MOMENTS, control, *SPLITS.values(), Path(__file__).parent]
        return cls(FOLDER / resuming.fingerprint(facts, [path for path in inputs if path.exists()]))

    def find(self, what: str, *asked: Any) -> Any | None:
        """What a method gave, None where that is not known. A survey down to a smaller share serves, too."""
        survey = what == "survey"
        paths = sorted(self.folder.glob("survey-*.json")) if survey else [self._path(what, asked)]
        every = (one for one in map(self._read, paths) if one and (not survey or one["asked"] <= [*asked]))
        found = next(every, None)
        return found and UNPACK.get(what, _same)(found["found"])

    def keep(self, found: Any, what: str, *asked: Any) -> None:
        """Write down what a method gave."""
        value = {"asked": asked, "found": PACK.get(what, _same)(found)}
        write_text(self._path(what, asked), json.dumps(value, allow_nan=False) + "\n")

    def _path(self, what: str, asked: tuple) -> Path:
        return self.folder / f"{what}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.json"

    def _read(self, path: Path) -> dict | None:
        with suppress(UserError):
            found = read_json(path) if path.exists() else None
            return found if isinstance(found, dict) and found.keys() == {"asked", "found"} else None
        return None


def _same(value: Any) -> Any:
    return value


def _listed(every: Mapping[Matrix, Any], pack: Callable[[Any], Any] = _same) -> list:
    """What belongs to matrices, as JSON has no keys but strings."""
    return [[layer, role, pack(one)] for (layer, role), one in every.items()]


def _by_matrix(every: list, unpack: Callable[[Any], Any] = _same) -> dict[Matrix, Any]:
    return {(layer, role): unpack(one) for layer, role, one in every}


def _pack_probed(found: Probed) -> dict:
    options = _listed(found.options, lambda every: [[one.stored, one.error, one.form] for one in every])
    return {"original": found.original, "options": options, "probes": _listed(found.probes)}


def _unpack_probed(found: dict) -> Probed:
    options = _by_matrix(found["options"], lambda every: [Option(*one) for one in every])
    lines = _by_matrix(found["probes"], lambda forms: {form: [*map(tuple, line)] for form, line in forms.items()})
    return Probed(found["original"], options, lines)


def _pack_surveyed(found: Surveyed) -> dict:
    gains = [[window, _listed(every, torch.Tensor.tolist)] for window, every in found.gains.items()]
    return {"windows": [*map(asdict, found.windows)], "orders": found.orders, "fewer": found.fewer, "gains": gains}


def _unpack_surveyed(found: dict) -> Surveyed:
    def tensor(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    windows = [Layout(tuple(map(tuple, one["windows"])), one["perplexity"], one["ranks"]) for one in found["windows"]]
    gains = {tuple(window): _by_matrix(every, tensor) for window, every in found["gains"]}
    return Surveyed(windows, found["orders"], found["fewer"], gains)


def _unpack_tried(found: list[dict]) -> list[Tried]:
    return [Tried(**one | {"layers": Layers(**one["layers"])}) for one in found]


PACK: dict[str, Callable] = {
    "probe": _pack_probed,
    "survey": _pack_surveyed,
    "tried": lambda found: [*map(asdict, found)],
}
UNPACK: dict[str, Callable] = {"probe": _unpack_probed, "survey": _unpack_surveyed, "tried": _unpack_tried}
