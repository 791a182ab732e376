"""The checks of params.yaml that need the shape of the model: depths, widths, positions, parameter counts.

Each mistake is one line: the key, its value, what is allowed. Nothing here opens a model.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.core.architecture import targets, windows
from stages.core.architecture.families import family_of
from stages.core.architecture.shape import Shape, longest, of_folder
from stages.core.process.errors import UserError
from stages.core.settings import params
from stages.core.settings.params import Params
from stages.core.settings.profiles import Profile
from stages.core.settings.surgeries import Drop, LowRank, Share
from stages.core.settings.variants import Variant
from stages.core.settings.windows import Best, Blocks, Budget, Chosen, Forms, Layers, Like, NoWindows


def validate(profile: str, model: Path) -> None:
    """Raise UserError where params.yaml does not fit the model under study in the folder `model`. It is not opened."""
    refuse(mistakes(params.load(), profile, of_folder(model)))


def validate_variant(profile: str, checkpoint: Path) -> None:
    """Raise UserError where a length exceeds the positions of a variant, which may have lost layers."""
    refuse(list(lengths(profile, params.load().profiles[profile], longest(checkpoint))))


def validate_shape(profile: str, shape: Shape) -> None:
    """Raise UserError where params.yaml does not fit the model under study, which has this shape."""
    refuse(mistakes(params.load(), profile, shape))


def refuse(broken: list[str]) -> None:
    """Raise UserError with one line for each mistake, if there are any."""
    if broken:
        raise UserError("\n       ".join(f"{params.PARAMS}: {line}" for line in broken))


def mistakes(found: Params, profile: str, shape: Shape) -> list[str]:
    """One line for every value of a profile or a variant that a model of this shape does not allow."""
    said, task = found.profiles[profile].task, family_of(shape.model_type).task
    if said != task:
        return [f"profiles.{profile}.task = {said}: the task of a model of type {shape.model_type} is {task}"]
    lines = list(lengths(profile, found.profiles[profile], shape.positions))
    for name, variant in found.studied(profile).items():
        lines += variant_mistakes(f"variants.{name}", variant, shape)
    return lines


def lengths(name: str, profile: Profile, positions: int | None) -> Iterator[str]:
    """A line for every length that exceeds the model's positions, in tokens. None: any length is allowed."""
    for key, length in profile.lengths.items():
        if positions is not None and length > positions:
            yield f"profiles.{name}.{key} = {length}: this model takes at most {positions} positions"


def external_mistakes(where: str, model: str, own: Shape, other: Shape) -> Iterator[str]:
    """A line if another checkpoint, which `where` names, cannot be measured as the model under study is."""
    task, its = (family_of(shape.model_type).task for shape in (own, other))
    if task != its:
        yield f"{where} = {model}: the task of a model of type {other.model_type} is {its}, and this study's is {task}"
    elif own.vocabulary != other.vocabulary:
        what = "tokens" if task == "language" else "labels"
        yield (
            f"{where} = {model}: it knows {other.vocabulary} {what}: perplexities can be compared with the same "
            f"{own.vocabulary} {what} only"
        )


def warnings(found: Params, shape: Shape) -> list[str]:
    """A line for every rank at which factors store more than the matrices in whose place they stand."""
    (d_out, d_in), lines = _smallest(shape), []
    for name, variant in found.studied(found.profile).items():
        rank, size = getattr(variant.surgery, "rank", 0), getattr(variant.windows, "size", 1)
        shared = size * rank * (d_out + d_in) + d_out * d_in
        if rank * (d_out + d_in) > d_out * d_in:
            lines.append(
                f"variants.{name}.surgery.rank = {rank}: A and B store {rank * (d_out + d_in):,} parameters, the "
                f"{d_out} x {d_in} matrix itself {d_out * d_in:,}"
            )
        elif rank and not isinstance(variant.windows, Budget) and shared >= size * d_out * d_in:
            lines.append(
                f"variants.{name}.surgery.rank = {rank}: a base and the deltas of {size} layers store {shared:,} "
                f"parameters, the layers' own {d_out} x {d_in} matrices {size * d_out * d_in:,}"
            )
    return lines


def variant_mistakes(where: str, variant: Variant, shape: Shape) -> Iterator[str]:
    """A line for every value of a variant that needs more layers, neurons or parameters than the model has."""
    chosen, surgery = variant.windows, variant.surgery
    broken = list(_windows(f"{where}.windows", chosen, shape))
    yield from broken
    if isinstance(surgery, Share):
        yield from rank(f"{where}.surgery.rank", surgery.rank, shape)
    most = shape.layers - len(shape.stages)
    if isinstance(surgery, Drop) and surgery.layers and surgery.layers > most:
        yield f"{where}.surgery.layers = {surgery.layers}: {_layers(shape, 1, most)}"
    if isinstance(surgery, LowRank) and surgery.basis > shape.deepest.depth:
        yield f"{where}.surgery.basis = {surgery.basis}: {_layers(shape, 1, shape.deepest.depth)}"
    if isinstance(chosen, Budget) and not broken:
        allowed = _budget(chosen, surgery.biases, shape, variant.finetune.train == "deltas")
        yield from _target(f"{where}.windows", chosen.target_parameters, allowed, shape)
    elif isinstance(chosen, Forms) and not broken:
        yield from _target(f"{where}.windows", chosen.target_parameters, _forms(chosen, shape), shape)
    elif isinstance(chosen, Layers):
        yield from _target(f"{where}.windows", chosen.target_parameters, _baseline("drop", shape), shape)
    elif target := getattr(surgery, "target_parameters", None):
        yield from _target(f"{where}.surgery", target, _baseline(surgery.method, shape), shape)


def _windows(where: str, chosen: Chosen, shape: Shape) -> Iterator[str]:
    if isinstance(chosen, NoWindows | Layers) or (isinstance(chosen, Forms) and "share" not in chosen.forms):
        return
    key, sizes = ("size", [chosen.size]) if isinstance(chosen, Blocks) else ("sizes", chosen.sizes)
    if too_long := [size for size in sizes if size > shape.deepest.depth]:
        yield f"{where}.{key} = {too_long[0]}: {_layers(shape, 2, shape.deepest.depth)}"
        return
    if isinstance(chosen, Blocks | Forms):
        return
    if beyond := [layer for layer in chosen.exclude_layers if layer >= shape.layers]:
        yield f"{where}.exclude_layers = {beyond[0]}: this model has layers 0 to {shape.layers - 1} only"
        return
    fitting = windows.contiguous(shape.layers, sizes, chosen.exclude_layers, shape.borders)
    if not fitting:
        yield (
            f"{where}.exclude_layers = {chosen.exclude_layers} leaves no window of sizes = {sizes} in the "
            f"{shape.layers} layers of this model"
        )
    elif isinstance(chosen, Best) and chosen.count > windows.most(fitting):
        yield (
            f"{where}.count = {chosen.count}: at most {windows.most(fitting)} windows of sizes = {sizes} fit into the "
            f"{shape.layers} layers of this model"
        )


def _layers(shape: Shape, least: int, most: int) -> str:
    depths = [stage.depth for stage in shape.stages]
    if len(depths) > 1:
        return f"the stages of this model have {', '.join(map(str, depths))} layers, so {least} to {most} are allowed"
    return f"this model has {shape.layers} layers, so {least} to {most} are allowed"


def _smallest(shape: Shape) -> tuple[int, int]:
    """(d_out, d_in) of the smallest FFN matrix that leads into neurons."""
    return min(shape.matrices_of(stage.first)["in"] for stage in shape.stages)


def rank(where: str, value: int, shape: Shape) -> Iterator[str]:
    """A line if a rank exceeds that of an FFN matrix."""
    d_out, d_in = _smallest(shape)
    if value > min(d_out, d_in):
        yield (
            f"{where} = {value}: the FFN matrices of this model are {d_out} x {d_in}, so at most {min(d_out, d_in)} "
            "is allowed"
        )


def _target(where: str, spec: int | float | Like, allowed: list[tuple[int, int]], shape: Shape) -> Iterator[str]:
    key = f"{where}.target_parameters"
    if isinstance(spec, Like):
        most = shape.deepest.depth
        if spec.size * spec.count > most:
            has = f"this model has {most} layers" if most == shape.layers else f"its deepest stage has {most} layers"
            yield f"{key} = {spec.count} x {spec.size} layers: {has}, so size x count may be 2 to {most}"
            return
        broken = list(rank(f"{key}.rank", spec.rank, shape))
        yield from broken
        if broken:
            return
    number = targets.target(shape, spec)
    if not any(least <= number <= most for least, most in allowed):
        ranges = " or ".join(f"{least:,} to {most:,}" for least, most in allowed)
        shown = f"{{{', '.join(f'{k}: {v}' for k, v in spec)}}}" if isinstance(spec, Like) else spec
        asked = "" if number == spec else f" is {number:,} parameters"
        yield f"{key} = {shown}{asked}: {ranges} of this model's {shape.parameters:,} parameters are allowed"


def _budget(chosen: Budget, biases: str, shape: Shape, some: bool = False) -> list[tuple[int, int]]:
    """The ranges of parameter counts that windows of these sizes can reach by the choice of their ranks.

    some: whether a delta has to be left, with a rank of 1 at least.
    """
    each, total = targets.saving(shape, biases), shape.parameters
    rank = min(map(sum, shape.matrices.values())) if some else 0
    found = []
    fitting = windows.contiguous(shape.layers, chosen.sizes, chosen.exclude_layers, shape.borders)
    for saved in sorted(windows.savings(fitting, shape.layers, partial(targets.saved, shape, biases))):
        fewest = max(1, saved // each - windows.SPARE + 1)
        found.append((total - saved + rank, total - (fewest - 1) * each - 1))
    return _joined(found)


def _forms(chosen: Forms, shape: Shape) -> list[tuple[int, int]]:
    """The ranges of parameter counts that a mixture of these forms surely reaches: those of each form alone."""
    found: list[tuple[int, int]] = []
    for form in chosen.forms:
        if form == "share":
            budget = Budget(choose="budget", sizes=chosen.sizes, target_parameters=chosen.target_parameters)
            found += _budget(budget, "own", shape)
        else:
            found += _baseline({"sparse": "prune"}.get(form, form), shape)
    return _joined(found)


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, those that touch each other as one."""
    found: list[tuple[int, int]] = []
    for least, most in sorted(ranges):
        if found and least <= found[-1][1] + 1:
            least, reached = found.pop()
            most = max(most, reached)
        found.append((least, most))
    return found


def _baseline(method: str, shape: Shape) -> list[tuple[int, int]]:
    """The range of parameter counts that a method without windows can reach."""
    total = shape.parameters
    saved = shape.all_ffn_matrices - 1
    if method == "drop":
        saved = sum((stage.depth - 1) * stage.block for stage in shape.stages)
    elif method == "prune":  # a mask stores a bit for each entry, whatever stays
        saved -= targets.masks(shape)
    return [(total - saved, total - 1)]
