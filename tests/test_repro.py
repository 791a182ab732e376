"""How many chains run at once, on which devices, which stages they are, and what becomes of a failure."""

import os
import stat
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from closure import ROOT
from shrunk import attempt, run

from stages.commands import repro
from stages.core.process.errors import UserError
from stages.core.running import gpus, graph, wire
from stages.core.running.board import Board
from stages.core.running.calls import Failure
from stages.core.settings import params
from stages.core.settings.profiles import Runtime


@pytest.mark.parametrize(
    ("cuda", "device", "threads", "cores", "expected"),
    [
        (["0", "1", "2"], "auto", 1, 8, 3),
        (["0", "1", "2"], "cuda", None, 8, 3),
        (["0", "1", "2"], "cpu", 4, 8, 2),
        ([], "auto", 1, 2, 2),
        ([], "auto", 3, 8, 2),
        ([], "auto", 4, 2, 1),
        ([], "auto", None, 64, 1),
    ],
)
def test_chains_fit_the_machine(cuda, device, threads, cores, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert gpus.fitting(cuda, Runtime(device=device, threads=threads)) == expected


@pytest.mark.parametrize(("listed", "expected"), [("", []), ("3", ["3"]), ("2,5", ["2", "5"])])
def test_a_user_s_choice_of_devices_is_kept(listed, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert gpus.devices() == expected


def test_devices_are_those_that_nvidia_smi_lists(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.devices() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: one'\necho 'GPU 1: two'\n")
    (tmp_path / "nvidia-smi").chmod(stat.S_IRWXU)
    assert gpus.devices() == ["0", "1"]


def test_chains_that_search_begin_first():
    variants = params.load(ROOT / "params.yaml").variants
    names = repro.searching_first(variants)
    assert sorted(names) == sorted(variants)
    searched = [variants[name].windows.choose not in ("none", "blocks") for name in names]
    assert searched == sorted(searched, reverse=True) and names[:3] == ["softshare", "softshare_seed", "mix"]


def test_latency_is_in_no_chain_and_the_frozen_stage_nowhere():
    plan = graph.plan(ROOT / "dvc.yaml", ["svd", "pruned"])
    assert plan.shared[0] == "base" and "report" not in plan.shared
    assert list(plan.chains) == ["svd", "pruned"]
    assert plan.chains["svd"][:3] == ["search@svd", "surgery@svd", "finetune@svd"]
    assert plan.alone == ["latency@svd", "latency@pruned", "report"]
    assert "pretrain" not in plan.stages() and len(set(plan.stages())) == len(plan.stages())
    assert not set(plan.alone) & {stage for chain in plan.chains.values() for stage in chain}


@pytest.mark.parametrize("jobs", ["0", "-1", "two", ""])
def test_a_number_that_is_none_is_refused(jobs):
    with pytest.raises(UserError, match="JOBS = "):
        repro.main(jobs)


class Recorded:
    """Stands in for calls of DVC: remembers them, and fails where told to."""

    def __init__(self, outdated, failing=(), plan=None):
        names = ["one", "two", "three"]
        chains = {name: [f"search@{name}", f"finetune@{name}"] for name in names}
        plan = plan or graph.Plan(["base"], chains, [*(f"latency@{name}" for name in names), "report"])
        self.board, self.screen, self.failing = Board(plan, outdated or plan.stages()), self, failing
        self.made, self.said, self.devices = [], [], {}

    def run(self, name, *arguments, surroundings):
        self.made.append((name, arguments))
        self.devices[name] = surroundings.get("CUDA_VISIBLE_DEVICES")
        return Failure(f"search@{name}", ["error: why"], Path("log")) if name in self.failing else None

    def say(self, text):
        self.said.append(text)


def test_what_is_shared_comes_first_and_a_plain_repro_last():
    calls = Recorded([])
    assert repro.study(calls, ["0", "1"]) == []
    (first, *chains, last) = calls.made
    assert first == ("shared stages", ("repro", "base")) and last == ("other stages", ("repro",))
    assert {name for name, _ in chains} == {"one", "two", "three"}
    assert all(
        arguments == ("--wait-for-lock", "repro", "--single-item", f"search@{name}", f"finetune@{name}")
        for name, arguments in chains
    )
    assert {calls.devices[name] for name, _ in chains} <= {"0", "1"} and calls.devices["other stages"] is None


def test_shared_stages_run_side_by_side_where_none_needs_another():
    plan = graph.plan(ROOT / "dvc.yaml", ["svd"])
    assert plan.trunk() == ["base", "prepare"]
    assert plan.branches == [["extract", "correlate", "align"], ["articles"], ["reviews"], ["control"]]
    calls = Recorded([], plan=plan)
    assert repro.study(calls, [None, None]) == []
    assert calls.made[0] == ("shared stages", ("repro", "base", "prepare"))
    branches = {name: arguments for name, arguments in calls.made[1:5]}
    assert branches["shared extract"] == ("--wait-for-lock", "repro", "--single-item", "extract", "correlate", "align")
    assert branches.keys() == {"shared extract", "shared articles", "shared reviews", "shared control"}
    assert [name for name, _ in calls.made[5:]] == ["svd", "other stages"]


def test_after_a_failed_branch_no_chain_begins():
    plan = graph.plan(ROOT / "dvc.yaml", ["svd"])
    calls = Recorded([], failing=["shared control"], plan=plan)
    assert len(repro.study(calls, [None, None])) == 1
    assert not {"svd", "other stages"} & {name for name, _ in calls.made}


@pytest.mark.parametrize(
    ("graph_of", "expected"),
    [
        ({"a": []}, []),
        ({"a": [], "b": ["a"], "c": ["b"]}, []),
        ({"a": [], "b": ["a"], "c": ["a"]}, [["b"], ["c"]]),
        ({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}, []),
        ({"a": [], "b": [], "c": ["b"], "d": ["a", "c"], "e": []}, [["a", "b", "c", "d"], ["e"]]),
        ({"a": [], "b": ["a"], "c": ["a", "b"], "d": []}, [["a", "b", "c"], ["d"]]),
        ({"x": [], "a": ["x"], "b": ["a"], "c": ["b"], "d": ["b"]}, [["c"], ["d"]]),
    ],
)
def test_no_branch_needs_what_another_makes(graph_of, expected):
    entries = {
        name: {"deps": [f"made/{other}/part" for other in needs], "outs": [{f"made/{name}": {"cache": False}}]}
        for name, needs in graph_of.items()
    }
    assert graph.branches(entries) == expected


def test_what_is_up_to_date_is_left_to_the_last_call():
    calls = Recorded(["finetune@two", "latency@two", "report"])
    repro.study(calls, [None, None])
    assert [name for name, _ in calls.made] == ["two", "other stages"]
    calls = Recorded([])
    repro.study(calls, [None])
    assert [name for name, _ in calls.made] == ["other stages"]  # one job: DVC's own order


def test_after_a_failure_nothing_else_begins_and_it_is_said_at_once():
    calls = Recorded([], failing=["shared stages"])
    failures = repro.study(calls, [None, None])
    assert [name for name, _ in calls.made] == ["shared stages"] and len(failures) == 1
    assert calls.said == ["stage search@shared stages failed:\n  error: why\n  log: log"]
    calls = Recorded([], failing=["one", "two", "three"])
    assert 1 <= len(repro.study(calls, [None, None])) <= 2
    assert "other stages" not in [name for name, _ in calls.made]


def test_a_failed_study_ends_with_status_1_and_names_the_stage(tmp_path):
    """The whole command, on a project whose only shared stage fails before it reads anything."""
    for name in ("params.yaml", ".dvc/config", "dvc.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  base: {cmd: 'echo error: nothing there >&2; exit 3', outs: [model]}\n"
        "  search: {foreach: '${variants}', do: {cmd: 'true', deps: [model]}}\nvars: [params.yaml]\n"
    )
    run(tmp_path, "git", "init", "-q")
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    done = attempt(tmp_path, sys.executable, "-m", "stages.commands.repro", "--jobs", "2")
    assert done.returncode == 1, done.stderr
    assert done.stdout == ("stage base failed:\n  error: nothing there\n  log: artifacts/logs/base.log\n")
    assert done.stderr.endswith("; failed: base\n") and done.stderr.count("\n") == 1
    assert "error: nothing there\n" in (tmp_path / "artifacts/logs/base.log").read_text()


@pytest.mark.parametrize("outdated", [0, 1, 2])
def test_scratch_lies_with_the_server_s_socket_and_goes_with_it(outdated, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()

    @contextmanager
    def serving(log):
        yield {wire.SERVER: str(tmp_path / "own/socket")}

    monkeypatch.setattr(repro.server, "serving", serving)
    plan = graph.Plan(["base", "prepare"], {}, [])
    with repro.starting(Board(plan, plan.shared[:outdated])) as variables:
        if outdated < 2:  # not worth a server
            assert variables == {}
        else:
            assert variables == {
                wire.SERVER: str(tmp_path / "own/socket"),
                "SHARED_FFN_SCRATCH": str(tmp_path / "own/scratch"),
            }
            assert (tmp_path / "own/scratch").is_dir()
