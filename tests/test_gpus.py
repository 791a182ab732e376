"""Which CUDA devices are counted, who gets which, and whose memory counts; nvidia-smi and torch are faked."""

import json
import stat
from types import SimpleNamespace

import pytest

from stages.commands import repro
from stages.core.process.errors import UserError
from stages.core.running import gpus, graph
from stages.core.settings.profiles import Runtime

MIG = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d3b)
  MIG 3g.20gb     Device  0: (UUID: MIG-aaaa)
  MIG 3g.20gb     Device  1: (UUID: MIG-bbbb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-77c1)
"""
NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nMake sure it is running.\n"


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Makes an nvidia-smi that prints a text and ends with a code, the only program on PATH."""
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(text, code=0):
        (tmp_path / "said").write_text(text)
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\nwhile read -r line; do echo \"$line\"; done < '{tmp_path}/said'\nexit {code}\n")
        script.write_text(script.read_text().replace("read -r", "IFS= read -r"))
        script.chmod(stat.S_IRWXU)

    return make


def test_parts_of_a_gpu_are_devices_and_the_gpu_itself_is_not(smi):
    smi(MIG)
    assert gpus.devices() == ["MIG-aaaa", "MIG-bbbb", "1"]


def test_a_failing_nvidia_smi_lists_no_device_and_says_why(smi, capsys):
    smi(NO_DRIVER, 9)
    assert gpus.devices() == []
    assert "couldn't communicate with the NVIDIA driver" in capsys.readouterr().err


def test_lines_that_are_no_device_are_none(smi):
    smi(f"warning: infoROM is corrupted\n{MIG}\nGPU is lost\n")
    assert len(gpus.devices()) == 3


@pytest.mark.parametrize(("listed", "expected"), [("-1", []), ("0,-1,2", ["0"]), ("1, 0", ["1", "0"])])
def test_what_cuda_ignores_is_no_device(listed, expected, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, listed)
    assert gpus.devices() == expected


@pytest.mark.parametrize(
    ("cuda", "device", "jobs", "expected"),
    [
        (["0", "1"], "auto", 3, ["0", "1", "0"]),
        (["0", "1"], "cuda", 2, ["0", "1"]),
        (["0", "1"], "cuda:1", 2, [None, None]),
        (["0", "1"], "cpu", 2, [None, None]),
        (["7"], "auto", 2, [None, None]),
    ],
)
def test_a_numbered_device_is_one_and_keeps_its_number(cuda, device, jobs, expected):
    runtime = Runtime(device=device, threads=None)
    assert gpus.places(cuda, runtime, jobs) == expected
    if ":" in device:
        assert gpus.fitting(cuda, runtime) == 1


@pytest.mark.parametrize(("listed", "order"), [(None, "PCI_BUS_ID"), ("2,0", None)])
def test_a_chain_sees_its_device_by_nvidia_smi_s_number(listed, order, monkeypatch):
    """Numbers that the user gave are CUDA's already."""
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if listed:
        monkeypatch.setenv(gpus.VISIBLE, listed)
    wanted = {gpus.VISIBLE: "2", **({"CUDA_DEVICE_ORDER": order} if order else {})}
    assert gpus.environment("2") == wanted and gpus.environment(None) == {}


def test_each_chain_is_shown_its_device_alone(monkeypatch):
    seen = {}

    class Calls:
        board = SimpleNamespace(
            plan=graph.Plan(shared=[], chains={"svd": ["a@svd"], "pruned": ["a@pruned"]}, alone=[]),
            stages={"a@svd", "a@pruned"}, done=set(),
        )  # fmt: skip

        def run(self, name, *arguments, surroundings=None):
            seen[name] = surroundings

    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    repro.study(Calls(), ["0", "1"])
    assert {seen[name][gpus.VISIBLE] for name in ("svd", "pruned")} <= {"0", "1"}
    assert not any(seen[name] for name in seen.keys() - {"svd", "pruned"})


@pytest.fixture
def torch_sees(monkeypatch):
    """Stands in for torch in a process of its own."""

    def make(cards, unused="", code=0, error=""):
        answer = SimpleNamespace(returncode=code, stdout=f"\n{json.dumps([cards, unused])}\n", stderr=error)
        monkeypatch.setattr(gpus, "_may_be_there", lambda: True)
        monkeypatch.setattr(gpus.subprocess, "run", lambda *args, **options: answer)

    return make


def test_memory_is_that_of_the_smallest_device_or_of_the_numbered_one(torch_sees):
    torch_sees([["Large", 80e9], ["Small", 16e9], ["Middle", 40e9]])
    assert gpus.smallest("auto") == gpus.smallest("cuda") == gpus.Card("Small", 16e9)
    assert gpus.smallest("cuda:2") == gpus.Card("Middle", 40e9)
    assert gpus.smallest("cpu") is None
    with pytest.raises(UserError, match="runtime.device = cuda:3: torch sees 3 CUDA devices"):
        gpus.smallest("cuda:3")


@pytest.mark.parametrize(("code", "unused"), [(0, "the driver is too old"), (1, "the driver is too old")])
def test_a_gpu_that_torch_cannot_use_is_none(code, unused, torch_sees, capsys):
    torch_sees([], "" if code else unused, code, f"Traceback\n{unused}\n")
    assert gpus.smallest("auto") is None
    assert "takes the CPU: the driver is too old" in capsys.readouterr().out
    with pytest.raises(UserError, match="runtime.device = cuda: torch sees 0 CUDA devices .the driver is too old"):
        gpus.smallest("cuda")


def test_torch_itself_is_asked(monkeypatch, tmp_path):
    """Wherever the command runs; here there is nothing to see."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert gpus._asked() == ([], "")
