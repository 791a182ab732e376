"""How many chains run at once, on which devices, and which stages they are."""

import os
import stat

import pytest
from closure import ROOT

from stages.commands import repro
from stages.core.process.errors import UserError
from stages.core.running import gpus, graph
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
