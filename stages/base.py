"""Snapshot the model under study: weights, tokenizer, and where they came from."""

import hashlib
from pathlib import Path

from stages.core.architecture import opening, rules, shape
from stages.core.process import command, hub
from stages.core.process.artifacts import replacing, write_json
from stages.core.settings import params


def main(profile: str, model: Path, tokenizer: Path, provenance: Path) -> None:
    source = params.section(profile, "base")
    hub.refuse(f"profiles.{profile}.base", source.model, source.gguf_file)
    if found := shape.of_source(source.model, source.revision, source.gguf_file):
        rules.validate_shape(profile, found)
    # Weights and tokenizer come from one commit, even if another is pushed in the meantime.
    revision = opening.commit(source.model, source.revision, source.gguf_file)
    dense, own_tokenizer = opening.open_source(source.model, revision or source.revision, source.gguf_file)
    # Again with the opened model: its shape may not have been known before, or its file may differ from config.json.
    known = shape.of_model(dense)
    rules.validate_shape(profile, known)
    with replacing(model) as draft:
        dense.save_pretrained(draft)
        digest = sha256(sorted(draft.glob("*.safetensors")))
    with replacing(tokenizer) as draft:
        opening.save_processor(own_tokenizer, draft)
    write_json(
        provenance,
        {
            **source.model_dump(),
            "resolved_revision": revision,
            "sha256": digest,
            "dtype": opening.dtype(source.model, revision or source.revision, source.gguf_file),
            "model_type": dense.config.model_type,
            "layers": known.layers,
            "parameters": sum(parameter.numel() for parameter in dense.parameters()),
        }
        # Where there are stages: the first layer of each but the first.
        | ({"borders": known.borders} if known.borders else {}),
    )


def sha256(files: list[Path]) -> str:
    """The SHA-256 digest of the bytes of several files, in order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    command.entry(main)
