"""DVC killed ten times over at random moments of a run: what is there in the end is what a clean run makes."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML
from shrunk import new_clone, run

TARGET = "finetune@softshare"


def outputs(folder):
    """Stage -> its outputs with their hashes, as dvc.lock has them."""
    stages = YAML(typ="safe").load((folder / "dvc.lock").read_text())["stages"]
    return {name: {out["path"]: out["md5"] for out in entry["outs"]} for name, entry in stages.items()}


def running(folder):
    """Processes at work in a folder."""
    import psutil

    return [process for process in psutil.process_iter() if _is_in(process, folder)]


def _is_in(process, folder):
    import psutil

    try:
        return Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, FileNotFoundError):
        return False


def test_killed_ten_times_a_run_ends_like_a_clean_one(clone, tmp_path):
    folder, chance, stages = new_clone(tmp_path / "study"), random.Random(5), []
    (folder / "dvc.lock").unlink()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for _ in range(10):
        dvc = subprocess.Popen(
            ["dvc", "repro", TARGET], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(2, 8))
        stages.append(len(running(folder)))
        dvc.kill()
        dvc.wait()
    assert max(stages) >= 2  # DVC was not alone when it was killed
    run(folder, "dvc", "repro", TARGET)
    found = outputs(folder)
    assert TARGET in found and found == {name: outputs(clone)[name] for name in found}
    assert not running(folder)
    assert not list((folder / "artifacts").rglob(".*.part")) and not list(folder.glob("artifacts/unfinished/*"))
