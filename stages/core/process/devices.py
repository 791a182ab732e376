"""Where a stage computes: device, threads, precision, and what is recorded of them."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from stages.core.process.errors import UserError

# mallopt(3): no block is mapped on its own (M_MMAP_MAX), and free memory is never given back (M_TRIM_THRESHOLD).
MALLOC = {-4: 0, -1: -1}
# How the driver shows its devices, below the root of the file system.
CARDS = "dev/nvidia[0-9]*"
# Instructions of x86 and ARM for products of bfloat16, as torch names them.
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def start(runtime: Any) -> Any:
    """Apply a `Runtime` section: set the thread counts and return the torch device, which becomes the current one.

    `auto` takes a CUDA device where there is one, and says so where it must leave one unused. Raises UserError where
    `cuda` is asked for in vain.
    """
    import torch
    from threadpoolctl import threadpool_limits

    if runtime.threads:
        torch.set_num_threads(runtime.threads)
        # scipy's own: they would wait for each other wherever another stage has a core.
        threadpool_limits(runtime.threads, user_api="blas")
    _keep_memory()
    if runtime.device == "cpu":
        return torch.device("cpu")
    available = torch.cuda.is_available()
    if not available and runtime.device == "auto":
        if unused := unused_card():
            print(f"warning: runtime.device = auto takes the CPU: {unused}", file=sys.stderr)
        return torch.device("cpu")
    if not available:
        raise UserError(
            f"params.yaml: runtime.device = {runtime.device}, but torch sees no CUDA device; use cpu or auto"
        )
    device = torch.device("cuda" if runtime.device == "auto" else runtime.device)
    if device.index is not None:
        if device.index >= (count := torch.cuda.device_count()):
            raise UserError(
                f"params.yaml: runtime.device = {runtime.device}, but torch sees {count} of them, cuda:0 to "
                f"cuda:{count - 1}"
            )
        torch.cuda.set_device(device)
    return device


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unused_card() -> str:
    """Why torch does not use the NVIDIA device of this machine ("": it has none, or the user hides it)."""
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not any(Path("/").glob(CARDS)):
        return ""
    if torch.version.cuda is None:
        return f"this machine has an NVIDIA device, but torch {torch.__version__} is built without CUDA"
    return (
        f"this machine has an NVIDIA device, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it; "
        "look at its driver and at CUDA_VISIBLE_DEVICES"
    )


def _keep_memory() -> None:
    """Have the C library keep large blocks that are freed, where it is glibc.

    It would give each logit or gradient back to the system, and the next step would wait for every page of them anew.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in MALLOC.items():
            libc.mallopt(option, value)


def precision(device: Any, wanted: str) -> str:
    """What training computes in where a `Runtime` section asks for `wanted`: a device may lack bfloat16.

    Emulated, it would be slower than float32, on a processor with AVX-512 alone by a factor of four.
    """
    import torch

    if wanted != "bfloat16":
        return wanted
    if device.type == "cuda":
        own = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities()
        own = any(known.get(name) for name in BFLOAT16)
    return wanted if own else "float32"


def autocast(device: Any, wanted: str) -> Any:
    """A context in which a training step computes in the `precision` that the device has for `wanted`."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision(device, wanted) == "bfloat16")


def environment(device: Any, wanted: str = "float32") -> dict[str, Any]:
    """Where a figure was measured: device, precision taken for `wanted`, threads and library versions, plain values.

    Of CUDA also its version, the driver's, how many devices there are, and whether float32 products are TF32.
    """
    import platform

    import torch
    import transformers

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "precision": precision(device, wanted),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **(_cuda() if cuda else {}),
    }


def _cuda() -> dict[str, Any]:
    import torch

    return {
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "devices": torch.cuda.device_count(),
        "tf32": torch.get_float32_matmul_precision() != "highest",
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver, where its kernel module says it."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in line.split() if word[:1].isdigit()), None)


def _processor() -> str:
    """The processor's name: Linux keeps it in /proc/cpuinfo, elsewhere the platform module knows."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
