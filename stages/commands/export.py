"""Write a variant as a dense checkpoint that stock transformers opens, tokenizer beside it.

Run from the repository's root after `make repro`: make export VARIANT=softshare TO=exported/softshare
"""

from contextlib import suppress
from pathlib import Path

from stages.commands.finished import checkpoint_of
from stages.core.architecture.opening import open_snapshot
from stages.core.architecture.tokens import state_end_tokens
from stages.core.forms import checkpoint
from stages.core.forms.dense import to_dense
from stages.core.process import command
from stages.core.process.artifacts import replacing, write_json
from stages.core.process.errors import UserError
from stages.core.text.tokenizer import open_tokenizer

RECORD = "export.json"  # beside the checkpoint: what it is, and that this command wrote the folder


def main(variant: str, to: Path) -> None:
    import torch
    from transformers import GenerationConfig

    source = checkpoint_of(variant)
    refuse_to_replace(to)
    view, _ = checkpoint.load(source)
    shared, plain = view.model, to_dense(view)
    # The original's way to generate: a variant's checkpoint has only its end tokens.
    with suppress(OSError):
        plain.generation_config = GenerationConfig.from_pretrained("artifacts/model", local_files_only=True)
    state_end_tokens(plain)
    with replacing(to) as draft:
        plain.save_pretrained(draft)
        open_tokenizer(Path("artifacts/tokenizer")).save_pretrained(draft)
        ids = torch.arange(64).remainder(shared.config.vocab_size)[None]
        with torch.no_grad():
            difference = (open_snapshot(draft)(ids).logits - shared(ids).logits).abs().max().item()
        write_json(draft / RECORD, {"variant": variant, "largest_logit_difference": difference})
    print(f"{to}: open it with AutoModelForCausalLM.from_pretrained; largest logit difference {difference:.1e}")


def refuse_to_replace(to: Path) -> None:
    """Raise UserError where `to` is a file, or a folder that holds anything but an earlier export."""
    if to == Path() or to.is_file() or (to.is_dir() and any(to.iterdir()) and not (to / RECORD).is_file()):
        shown = "" if to == Path() else to
        raise UserError(f"TO = {shown}: a new folder or an earlier export is needed, such as exported/softshare")


if __name__ == "__main__":
    command.entry(main)
