"""Which of a study's finished variants a command is about."""

from pathlib import Path

from stages.core.process.errors import UserError
from stages.core.settings import params

FINISHED = Path("artifacts/finetuned")


def checkpoint_of(variant: str) -> Path:
    """The folder of a variant's recovered checkpoint.

    Raises UserError where it is not there: params.yaml has no such variant, or it has not been made yet.
    """
    if variant and (FINISHED / variant / "config.json").is_file():
        return FINISHED / variant
    known = params.load().variants
    if variant not in known:
        raise UserError(f"VARIANT = {variant}: params.yaml has {', '.join(known)}")
    raise UserError(f"VARIANT = {variant}: {FINISHED / variant} is not there yet; `make repro` makes it")
