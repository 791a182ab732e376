"""Run EleutherAI's lm-evaluation-harness on a variant, as the pipeline keeps it, or on the folder of an export.

Needs the extra of pyproject.toml: pip install '.[harness]'. Run from the repository's root after `make repro`:
make harness VARIANT=softshare TASK=reviews (or VARIANT=exported/softshare). Tasks of data/harness run offline; any
other name is the harness's own.
"""

import json
from pathlib import Path
from typing import Any

from stages.commands.finished import checkpoint_of
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json, write_text
from stages.core.process.errors import UserError
from stages.core.settings import params
from stages.core.settings.texts import Reviews
from stages.core.text.sources import labelled
from stages.core.text.tokenizer import open_tokenizer


def main(variant: str, task: str, to: Path) -> None:
    if not task:
        raise UserError("TASK is missing: reviews, which needs no network, or a task of the harness")
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"the harness is not installed ({error}): .venv/bin/python -m pip install lm_eval==0.4.13"
        ) from error
    tasks = TaskManager(include_path="data/harness")
    if missing := [name for name in task.split(",") if name not in tasks.all_tasks]:
        raise UserError(f"TASK = {missing[0]} is not known to the harness; `lm_eval ls tasks` lists its own")
    known = params.load()
    profile = known.profiles[known.profile]
    if profile.task != "language":
        raise UserError(f"profile {known.profile}: its models classify images, and the harness scores language models")
    opened, tokenizer = open_variant(variant)
    write_reviews(Path("artifacts/harness/reviews.jsonl"))
    device = devices.start(profile.runtime)
    model = HFLM(pretrained=opened.to(device), tokenizer=tokenizer, batch_size=8)
    found = lm_eval.simple_evaluate(model, tasks=task.split(","), task_manager=tasks, bootstrap_iters=0)
    results = {
        name: {key: value for key, value in row.items() if isinstance(value, int | float)}
        for name, row in found["results"].items()
    }
    write_json(to, {"variant": variant, "lm_eval": lm_eval.__version__, "results": results})
    print(json.dumps(results, indent=2))


def open_variant(variant: str) -> tuple[Any, Any]:
    """The model and tokenizer of a variant's checkpoint, or of an export of any form and type."""
    if not (variant and Path(variant, "config.json").is_file()):
        return checkpoint.load(checkpoint_of(variant))[0].model, open_tokenizer(Path("artifacts/tokenizer"))
    from transformers import AutoModelForCausalLM

    # `checkpoint` imports the module of the shared form, so that no code of the folder is run.
    model = AutoModelForCausalLM.from_pretrained(variant, local_files_only=True, trust_remote_code=False)
    return model, open_tokenizer(Path(variant))


def write_reviews(path: Path) -> None:
    """The documents of the local task: test reviews of the project's own grammar, as json lines."""
    source = Reviews(kind="reviews", seed=0, train=4, test=200)
    rows = labelled(source, "test", Path("data/lexicon.yaml"), Path("data/reviews.yaml"))
    write_text(path, "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


if __name__ == "__main__":
    command.entry(main)
