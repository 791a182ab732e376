"""Devices and precision: what is asked for is taken or refused, and what was taken is on record."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from closure import ROOT
from threadpoolctl import threadpool_info, threadpool_limits

from stages.core.process import devices
from stages.core.process.errors import UserError
from stages.core.settings.profiles import Runtime


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    with threadpool_limits(None, user_api="blas"):
        yield
    torch.set_num_threads(before)


def without_cuda(monkeypatch, available=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_a_device_is_refused(device, monkeypatch):
    without_cuda(monkeypatch)
    with pytest.raises(UserError, match=f"runtime.device = {device}, but torch sees no CUDA device; use cpu or auto"):
        devices.start(Runtime(device=device, threads=1))


@pytest.mark.parametrize(("available", "expected"), [(False, "cpu"), (True, "cuda")])
def test_auto_takes_what_is_there(available, expected, monkeypatch):
    without_cuda(monkeypatch, available)
    assert devices.start(Runtime(device="auto", threads=1)).type == expected


@pytest.mark.parametrize("count", [1, 2])
def test_threads_of_a_stage_are_those_of_numpy_and_scipy_too(count):
    """Their own, as many as there are cores, made a search of windows take twice its time beside another stage."""
    import scipy.linalg  # noqa: F401

    devices.start(Runtime(device="cpu", threads=count))
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert pools and set(pools) == {count} and torch.get_num_threads() == count


def with_instructions(monkeypatch, *names):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True} | dict.fromkeys(names, True))


def test_what_was_taken_is_on_record(monkeypatch):
    with_instructions(monkeypatch, "avx512_bf16")
    device = devices.start(Runtime(device="cpu", threads=1))
    found = devices.environment(device, "bfloat16")
    assert found["threads"] == 1 and found["precision"] == "bfloat16" and found["torch"] == torch.__version__


def test_a_device_without_bfloat16_computes_in_float32_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert devices.precision(torch.device("cuda"), "bfloat16") == "float32"
    assert devices.precision(torch.device("cuda"), "float32") == "float32"


@pytest.mark.parametrize(
    ("instructions", "taken"),
    [
        ((), "float32"),
        (("avx512_bf16",), "bfloat16"),
        (("amx_bf16",), "bfloat16"),
        (("neon",), "float32"),
        (("neon", "bf16"), "bfloat16"),
    ],
)
def test_a_processor_that_would_emulate_bfloat16_computes_in_float32(instructions, taken, monkeypatch):
    """This torch says of every processor with AVX-512 that it has bfloat16; emulated, it takes four times as long."""
    with_instructions(monkeypatch, *instructions)
    cpu = torch.device("cpu")
    assert devices.precision(cpu, "bfloat16") == devices.environment(cpu, "bfloat16")["precision"] == taken
    with devices.autocast(cpu, "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, taken)
    assert devices.precision(cpu, "float32") == "float32"


MEMORY = """
import psutil, torch
from stages.core.process import command, devices
from stages.core.settings.profiles import Runtime
torch.zeros(9)
{start}
resident = lambda: psutil.Process().memory_info().rss
before, block = resident(), torch.ones(50_000_000)
held = resident()
del block
assert held - before > 150e6
print((resident() - before) / (held - before) > 0.9)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize(
    ("start", "kept"), [("", "False"), ('devices.start(Runtime(device="cpu", threads=None))', "True")]
)
def test_memory_once_taken_serves_the_next_step(start, kept):
    command = [sys.executable, "-c", MEMORY.format(start=start)]
    assert subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout.split() == [kept]


SCRIPT = """
from pathlib import Path
from stages.core.process import command, devices
from stages.core.process.errors import UserError
def main(model: Path, profile: str):
    assert isinstance(model, Path) and isinstance(profile, str)
    {what}
command.entry(main)
"""


@pytest.mark.parametrize(
    ("what", "code", "lines"), [("pass", 0, 0), ("raise UserError('no such profile')", 1, 1), ("1 / 0", 1, None)]
)
def test_a_user_s_mistake_is_one_line_and_a_defect_is_not_hidden(what, code, lines):
    command = [sys.executable, "-c", SCRIPT.format(what=what), "--model", "m", "--profile", "p"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == code
    if lines is None:
        assert "ZeroDivisionError" in done.stderr
    else:
        assert done.stderr.count("\n") == lines and "Traceback" not in done.stderr


def test_what_opens_models_first_says_what_libraries_are_to_know():
    """They read these variables when they are imported, which importing the classes of checkpoints does."""
    said = "from stages.core.forms import checkpoint; from huggingface_hub import constants; from transformers.utils "
    said += "import logging; print(constants.HF_HUB_DISABLE_PROGRESS_BARS, logging.get_verbosity() == logging.ERROR)"
    taken = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS")
    clean = {name: value for name, value in os.environ.items() if name not in taken}
    done = subprocess.run([sys.executable, "-c", said], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_output_that_nobody_reads_any_more_ends_in_silence(tmp_path):
    """As of `make check | head -1`."""
    program = SCRIPT.replace("model: Path, profile: str", "").format(what="print('line\\n' * 100_000)")
    program = program.replace("assert isinstance(model, Path) and isinstance(profile, str)", "")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c \"$1\" | head -1; exit ${{PIPESTATUS[0]}}", "bash", program],
        cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (141, "line\n", "")
