"""Write a variant as a checkpoint to take away: weights, tokenizer, generation config and a model card.

FORM=dense (the default) opens in the stock class, wherever transformers does. FORM=shared keeps the weights shared: it
opens with the module that is copied beside it (trust_remote_code=True), or after an import of that module. DTYPE is the
source's unless given. Run from the repository's root after `make repro`:
make export VARIANT=softshare FORM=shared DTYPE=bfloat16 TO=exported/softshare
"""

import math
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.commands.finished import checkpoint_of, figures_are_current
from stages.core.architecture.tokens import state_end_tokens
from stages.core.architecture.view import ModelView
from stages.core.architecture.vision_shape import image_size
from stages.core.architecture.weights import auto_class
from stages.core.forms import checkpoint
from stages.core.forms.dense import to_dense
from stages.core.forms.structure import Sharing
from stages.core.process import command, hub
from stages.core.process.artifacts import read_json, replacing, write_json, write_text
from stages.core.process.errors import UserError
from stages.core.reporting import card
from stages.core.running.origins import Origins
from stages.core.settings import params
from stages.core.settings.surgeries import External

RECORD = "export.json"  # beside the checkpoint: what it is, and the files that this command wrote
OWN = ("artifacts", "metrics", "data", "stages", "templates", "tests", "docs", ".dvc", ".git")
SHARD = "4GB"  # the largest file of weights
FORMS = ("dense", "shared")
# Apache-2.0 asks for LICENSE and NOTICE beside copies, the terms of Gemma and Llama for their own files.
TERMS = re.compile(r"(^|\.)(licen[cs]e|notice|terms|use_policy)", re.IGNORECASE)
USUAL = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
TEMPLATES = Path(__file__).parents[2] / "templates"
DTYPES = ("float32", "bfloat16", "float16")


def main(variant: str, to: Path, form: str = "dense", dtype: str = "") -> None:
    export(variant, to, form, dtype, to.name)


def export(variant: str, to: Path, form: str, dtype: str, name: str) -> None:
    """Write a variant to a folder. name: by which the card opens the model."""
    import torch
    from transformers import GenerationConfig

    if form not in FORMS:
        raise UserError(f"FORM = {form}: {' or '.join(FORMS)}")
    source, figures = known("artifacts/provenance.json"), known(f"metrics/variants/{variant}.json")
    dtype = dtype or source.get("dtype", "float32")
    if dtype not in DTYPES:
        raise UserError(f"DTYPE = {dtype}: one of {', '.join(DTYPES)}, or nothing for the source's")
    folder = checkpoint_of(variant)
    refuse_external(variant)
    refuse_to_replace(to)
    current = figures_are_current(Origins.here())
    view, sharing = checkpoint.load(folder)
    probe, auto = probed(view.model.config), auto_class(view.model.config.model_type).__name__
    with torch.no_grad():
        wanted = view.model(probe).logits
    shares, zeros = form == "shared" and sharing != Sharing(), sparsity(view, sharing.kept)
    model = view.model if shares else to_dense(view)
    # The original's way to generate: a variant's checkpoint has only its end tokens.
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained("artifacts/model", local_files_only=True)
    state_end_tokens(model)
    with replacing(to) as draft:
        tensors = model.to(getattr(torch, dtype)).state_dict()
        if not shares:
            tensors = {name.removeprefix(view.family.prefix): tensor for name, tensor in tensors.items()}
        model.save_pretrained(draft, state_dict=tensors, max_shard_size=SHARD)
        if Path("artifacts/tokenizer").is_dir():
            shutil.copytree("artifacts/tokenizer", draft, dirs_exist_ok=True)
        for file in licence_files(source):
            shutil.copyfile(file, draft / file.name)
        with torch.no_grad():
            difference = (checkpoint.load(draft)[0].model(probe).logits - wanted).abs().max().item()
        if not math.isfinite(difference):
            raise UserError(f"DTYPE = {dtype}: in it the model's answers are not finite; bfloat16 has a wider range")
        size = sum(file.stat().st_size for file in draft.glob("*.safetensors"))
        record = {"variant": variant, "form": form, "dtype": dtype, "weights_bytes": size}
        record |= {"largest_logit_difference": difference}
        write_text(
            draft / "README.md",
            card.render(
                TEMPLATES,
                name=name,
                record=record,
                auto=auto,
                processor=processor_of(draft, shares),
                shares=shares,
                structure=asdict(sharing),
                sparsity=zeros,
                gone=max(0, source.get("layers", 0) - view.depth),
                recipe=recipe_of(variant),
                figures=figures if current else {},
                original=known("metrics/variants/original.json"),
                calibration=known("artifacts/calibration.json"),
                source=source,
                licence=licence_of(source),
            ),
        )
        written = [*(str(file.relative_to(draft)) for file in draft.rglob("*") if file.is_file()), RECORD]
        write_json(draft / RECORD, record | {"files": sorted(written)})
        for file in draft.glob("*.safetensors"):
            file.chmod((draft / RECORD).stat().st_mode)  # that of any new file; safetensors writes for its owner alone
    opener = f'{auto}.from_pretrained("{to}"{", trust_remote_code=True" if shares else ""})'
    if not current:
        print("The card has no figures: those in metrics/variants are of another run. `make repro` makes them anew.")
    elif not figures:
        print(f"The card has no figures: metrics/variants/{variant}.json is not there. `make repro` makes it.")
    print(f"{to}: {form}, {dtype}, {size:,} bytes of weights, largest logit difference {difference:.1e}")
    print(f"Open it with {opener}")


def sparsity(view: ModelView, kept: Mapping[str, Mapping[str, int]]) -> float:
    """The share of entries that are zero in the masked matrices; kept: layer -> role -> entries that are not."""
    shapes = [view.shape.matrices_of(int(layer))[role] for layer, roles in kept.items() for role in roles]
    entries = sum(d_out * d_in for d_out, d_in in shapes)
    return 1 - sum(sum(roles.values()) for roles in kept.values()) / entries if entries else 0.0


def refuse_external(variant: str) -> None:
    """Raise UserError where a variant is another's checkpoint: its weights, licence and card are where it came from."""
    found = params.load().variants.get(variant) if Path(params.PARAMS).is_file() else None
    if found and isinstance(found.surgery, External):
        raise UserError(f"VARIANT = {variant}: it is {found.surgery.model} as it came; take it from there")


def refuse_to_replace(to: Path) -> None:
    """Raise UserError where `to` is a file or a link, lies in an export, or holds what no earlier export wrote.

    Also where nothing can be written.
    """
    wanted = "a new folder or an earlier export is needed, such as exported/softshare"
    if to.is_symlink():
        raise UserError(f"TO = {to}: it is a link, and would be replaced: name the folder itself ({to.resolve()})")
    if lies := next((name for name in OWN if to.resolve().is_relative_to(Path(name).resolve())), None):
        raise UserError(f"TO = {to}: {lies} holds files of the study: {wanted}")
    if to == Path() or any(path.is_file() for path in (to, *to.parents)):
        raise UserError(f"TO = {'' if to == Path() else to}: {wanted}")
    if inside := [folder for folder in to.absolute().parents if written_by_export(folder)]:
        raise UserError(f"TO = {to}: it lies in the export {inside[0]}, which the next one would replace")
    known = {to / name for name in written_by_export(to)}
    if lost := next((path for path in to.rglob("*") if path.is_file() and path not in known), None):
        raise UserError(f"TO = {to}: {lost} is of no export and would be lost: {wanted}")
    there = next(folder for folder in to.absolute().parents if folder.is_dir())
    try:
        TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise UserError(f"TO = {to}: cannot write in {there}: {error.strerror}") from error


def written_by_export(folder: Path) -> list[str]:
    """The files that an export wrote into a folder; none where it is no export."""
    with suppress(UserError):
        said = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
        if isinstance(said, dict) and isinstance(said.get("files"), list):
            return said["files"]
    return []


def probed(config: Any) -> Any:
    """A batch of one that a model of this config takes: 64 tokens, or noise as an image."""
    import torch

    if size := image_size(config.to_dict()):
        return torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    length = min(64, getattr(config, "max_position_embeddings", None) or 64)
    return torch.arange(length).remainder(config.vocab_size)[None]


def processor_of(folder: Path, shares: bool) -> str:
    """The class of transformers that opens the image processor in a folder; empty where there is none.

    The auto class finds timm's by the model type, and the shared form has one of its own.
    """
    if not (file := folder / "preprocessor_config.json").is_file():
        return ""
    own = read_json(file)["image_processor_type"]
    return own if shares and own.startswith("Timm") else "AutoImageProcessor"


def known(path: str) -> dict[str, Any]:
    """What a JSON file of the study says; nothing where it has not been made."""
    return read_json(Path(path)) if Path(path).is_file() else {}


def recipe_of(variant: str) -> dict[str, Any]:
    """What params.yaml says of a variant, defaults left out; nothing where it has no such variant any more."""
    found = params.load().variants.get(variant) if Path(params.PARAMS).is_file() else None
    return found.model_dump(mode="json", exclude_defaults=True) if found else {}


def licence_of(source: dict[str, Any]) -> dict[str, str]:
    """The licence of a source: its `license` in the README's header, or the `file` that holds it; empty if unknown."""
    if not (model := source.get("model")):
        return {}
    folder = Path(model)
    readme = folder / "README.md" if folder.is_dir() else _of_hub(model, source.get("resolved_revision"))
    if readme and readme.is_file():
        text = readme.read_text(encoding="utf-8", errors="replace")
        header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        if found := header and re.search(r"^license:\s*(\S+)", header[1], re.MULTILINE):
            return {"license": found[1]}
    if folder.is_dir():
        found = [path.name for path in licence_files(source) if re.search("licen[cs]e|terms", path.name, re.I)]
        # A folder of several models has the name of each before its licence's.
        stem = (source.get("gguf_file") or "").partition(".gguf")[0]
        own = [name for name in found if name.startswith(f"{stem}.")]
        if own := own or [name for name in found if ".gguf" not in name]:
            return {"file": f"{folder}/{own[0]}"}
    return {}


def licence_files(source: dict[str, Any]) -> list[Path]:
    """The files that travel with a source's weights: its licence, notices and terms.

    In a folder any file named so. Of a hub's repository those of the usual names that the hub or its cache has.
    """
    if not (model := source.get("model")):
        return []
    folder, gguf = Path(model), source.get("gguf_file") or ""
    if not folder.is_dir():
        found = (_of_hub(model, source.get("resolved_revision"), name) for name in USUAL)
        return [path for path in found if path]
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and TERMS.search(path.name)]
    # A folder of several models has the name of each before its licence's.
    others = [path.name for path in folder.glob("*.gguf") if path.name != gguf]
    return [path for path in files if not any(path.name.startswith(other) for other in others)]


def _of_hub(model: str, revision: str | None, name: str = "README.md") -> Path | None:
    """A file of a repository of the hub, where the hub or its cache has it."""
    from transformers.utils import cached_file

    hub.settle()
    lenient = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    try:
        found = cached_file(model, name, revision=revision, **lenient)
    except (OSError, ValueError):
        return None
    return Path(found) if found else None


if __name__ == "__main__":
    command.entry(main)
