"""Which of a study's finished variants a command is about, and whether its files belong together."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.core.process.errors import UserError
from stages.core.running.origins import LOCK, Origins
from stages.core.settings import params

FINISHED, PROVENANCE = Path("artifacts/finetuned"), Path("artifacts/provenance.json")


def checkpoint_of(variant: str) -> Path:
    """The folder of a variant's recovered checkpoint.

    Raises UserError where it is not there: params.yaml has no such variant, or it has not been made yet. Also where the
    model under study, the text or the variant's params have changed since it was made.
    """
    folder = FINISHED / variant
    if not variant or "/" in variant or not (folder / "config.json").is_file():
        known = params.load().variants
        if not variant:
            raise UserError(f"VARIANT is missing; params.yaml has {', '.join(known)}")
        if variant not in known:
            raise UserError(f"VARIANT = {variant}: params.yaml has {', '.join(known)}")
        raise UserError(f"VARIANT = {variant}: {folder} is not there yet; `make repro` makes it")
    if origins := Origins.here():
        refuse_other_profile(origins)
        refuse_older(variant, origins)
    return folder


def refuse_other_profile(origins: Origins | None) -> None:
    """Raise UserError where the artifacts are of another profile than the one that is asked for."""
    asked = params.load().profile
    if origins and origins.profile and origins.profile != asked:
        key = "PROFILE" if os.environ.get(params.PROFILE) else "profile"
        raise UserError(
            f"{key} = {asked}: artifacts are of profile {origins.profile}; say PROFILE={origins.profile}, or let "
            f"`make repro PROFILE={asked}` make its own"
        )


def refuse_older(variant: str, origins: Origins) -> None:
    """Raise UserError where a variant's checkpoint is older than what it is made of, or not what its stage wrote."""
    stage = f"finetune@{variant}"
    if not PROVENANCE.is_file():
        raise UserError(f"VARIANT = {variant}: {PROVENANCE} is not there; `make verify` looks at every file")
    if stage not in origins.stages or not origins.holds(PROVENANCE):
        raise UserError(f"VARIANT = {variant}: artifacts are not those of {LOCK}; `make repro` makes them anew")
    if newer := origins.newer(stage):
        raise UserError(
            f"VARIANT = {variant}: its checkpoint is older than {newer[0]}, which it is made of; `make repro` makes it "
            "anew"
        )
    now = written_in_params(variant)
    for key, value in origins.said(stage, f"variants.{variant}.").items():
        if now and now.get(key.rpartition(".")[2]) != value:
            raise UserError(
                f"VARIANT = {variant}: {key} has changed in params.yaml since its checkpoint was made; `make repro` "
                "makes it anew"
            )
    if not origins.holds(FINISHED / variant):
        raise UserError(
            f"VARIANT = {variant}: {FINISHED / variant} is not what its stage wrote; `make verify` looks at every file"
        )


def refuse_older_than(stages: Iterable[str], profile: str, origins: Origins | None) -> None:
    """Raise UserError where what stages wrote is older than what they read, or the profile has changed since."""
    from ruamel.yaml import YAML

    now = YAML(typ="safe").load(params.PARAMS.read_text(encoding="utf-8"))["profiles"].get(profile, {})
    for stage in stages if origins else ():
        if newer := origins.newer(stage):
            raise UserError(f"what stage {stage} made is older than {newer[0]}; `make repro` makes it anew")
        for key, value in origins.said(stage, f"profiles.{profile}.").items():
            if now.get(key.rpartition(".")[2]) != value:
                raise UserError(f"{key} has changed in params.yaml since stage {stage} ran; `make repro` runs it again")


def written_in_params(variant: str) -> dict[str, Any]:
    """What params.yaml says of a variant as it stands there; nothing where it has no such variant any more."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(params.PARAMS.read_text(encoding="utf-8"))["variants"].get(variant, {})


def figures_are_current(origins: Origins | None) -> bool:
    """Whether metrics/variants has the figures of the artifacts: git has those of another run, too."""
    return origins is None or not origins.newer("report")
