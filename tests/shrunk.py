"""The study in a clone of its own, with budgets of seconds."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from closure import ROOT
from ruamel.yaml import YAML

STUDY = (sys.executable, "-m", "stages.commands.repro", "--jobs", "1")  # make repro
KEPT = ("original", "softshare", "merged_4")


def run(folder: Path, *command: str) -> str:
    """Standard output of a command that must succeed in `folder`, with this interpreter first on PATH."""
    done = attempt(folder, *command)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def attempt(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """A command in `folder`, whether it succeeds or not."""
    return subprocess.run(command, cwd=folder, env=environment(), text=True, capture_output=True)


def environment() -> dict[str, str]:
    """The surroundings of a command: this interpreter first, no hub, wide lines."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def edit(folder: Path, change) -> None:
    """Apply `change` to the parsed params.yaml of a clone."""
    yaml, path = YAML(), folder / "params.yaml"
    values = yaml.load(path)
    change(values)
    yaml.dump(values, path)


def shrink(values, kept=KEPT) -> None:
    """Budgets that make the run a matter of seconds; the code paths stay the same."""
    small = values["profiles"]["small"]
    small["prepare"]["source"].update(train=40, validation=4, test=4)
    small["reviews"]["source"].update(train=16, test=8)
    small["extract"].update(max_tokens=512, moment_tokens=512)
    small["search"]["max_tokens"] = 256
    small["finetune"]["max_tokens"] = 2048
    small["perplexity"]["max_tokens"] = 512
    small["generate"].update(prompts=["Once"], new_tokens=4)
    small["latency"].update(prompt_tokens=8, new_tokens=2, warmup=0, repeats=2)
    small["articles"]["source"].update(train=4, test=2)
    small["summarize"].update(articles=2, new_tokens=8)
    small["perplexity"]["seed_protocol"]["rows"] = 2
    small["latency"]["seed_protocol"]["repeats"] = 1
    keep(values, kept)


def keep(values, kept) -> None:
    """Leave only these variants in."""
    for name in [name for name in values["variants"] if name not in kept]:
        del values["variants"][name]


def commit(folder: Path, message: str) -> None:
    """Everything that git does not ignore, committed."""
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message)


def new_clone(folder: Path, kept=KEPT) -> Path:
    """The files of this working tree that git knows, shrunk, as a repository of their own; nothing has run there."""
    listed = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    narrow(folder / "data/model")
    run(folder, "git", "init", "-q")
    commit(folder, "a clone")
    edit(folder, lambda values: shrink(values, kept))
    lock = folder / "dvc.lock"
    lock.write_text(without_others(lock.read_text(), kept))
    run(folder, "dvc", "commit", "-q", "-f", "pretrain", "pretrain_digits")  # dvc.lock knows the narrow model
    return folder


def narrow(model: Path) -> None:
    """Put a model a quarter as wide, untrained, in the place of the bundled one: as many layers, the same tokens.

    What is fitted to a layer takes time by the third power of its width. It is the same model at every call.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model, n_embd=32)).save_pretrained(model)


def without_others(lock: str, kept) -> str:
    """A dvc.lock without the entries of other variants: DVC reads and writes them all, seconds for every stage."""
    head, *entries = re.split(r"^(?=  \S+:$)", lock, flags=re.MULTILINE)
    names = [entry.partition(":")[0].partition("@")[2] for entry in entries]
    return head + "".join(entry for name, entry in zip(names, entries) if not name or name in kept)


def stages_run(output: str) -> set[str]:
    """The stages that an output of `dvc repro`, or of `make repro` without a terminal, says it ran."""
    lines = re.findall(r"^Running stage '(.+)':$|^\[ *\d+/\d+\] (\S+)  [\d.]+ s$", output, re.MULTILINE)
    return {first or second for first, second in lines}
