"""Write a variant as a dense checkpoint that stock transformers opens, tokenizer beside it.

Run from the repository's root after `dvc repro`: make export VARIANT=softshare TO=exported/softshare
"""

from contextlib import suppress
from pathlib import Path

from stages.core.architecture.opening import open_snapshot
from stages.core.architecture.tokens import state_end_tokens
from stages.core.forms import checkpoint
from stages.core.forms.dense import to_dense
from stages.core.process import command
from stages.core.process.artifacts import replacing
from stages.core.process.errors import UserError
from stages.core.text.tokenizer import open_tokenizer


def main(variant: str, to: Path) -> None:
    import torch
    from transformers import GenerationConfig

    source = Path("artifacts/finetuned") / variant
    if not source.is_dir():
        raise UserError(f"{source} is not there: run `dvc repro finetune@{variant}` first")
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
    print(f"{to}: open it with AutoModelForCausalLM.from_pretrained; largest logit difference {difference:.1e}")


if __name__ == "__main__":
    command.entry(main)
