"""Where a stage computes: device, threads, precision, and what is recorded of them."""

import ctypes
from pathlib import Path
from typing import Any

from stages.core.process.errors import UserError

# mallopt(3): no block is mapped on its own (M_MMAP_MAX), and free memory is never given back (M_TRIM_THRESHOLD).
MALLOC = {-4: 0, -1: -1}


def start(runtime: Any) -> Any:
    """Apply a `Runtime` section: set the thread count and return the torch device.

    `auto` takes a CUDA device where there is one. Raises UserError where `cuda` is asked for in vain.
    """
    import torch

    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    _keep_memory()
    available = torch.cuda.is_available()
    if runtime.device.startswith("cuda") and not available:
        raise UserError(
            f"params.yaml: runtime.device = {runtime.device}, but torch sees no CUDA device; use cpu or auto"
        )
    return torch.device(("cuda" if available else "cpu") if runtime.device == "auto" else runtime.device)


def _keep_memory() -> None:
    """Have the C library keep large blocks that are freed, where it is glibc.

    It would give each logit or gradient back to the system, and the next step would wait for every page of them anew.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in MALLOC.items():
            libc.mallopt(option, value)


def precision(device: Any, wanted: str) -> str:
    """What training computes in where a `Runtime` section asks for `wanted`: a CUDA device may lack bfloat16."""
    import torch

    lacking = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    return "float32" if lacking else wanted


def autocast(device: Any, wanted: str) -> Any:
    """A context in which a training step computes in the `precision` that the device has for `wanted`."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision(device, wanted) == "bfloat16")


def environment(device: Any, wanted: str = "float32") -> dict[str, Any]:
    """Where a figure was measured: device, precision taken for `wanted`, threads and library versions, plain values."""
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
    }


def _processor() -> str:
    """The processor's name: Linux keeps it in /proc/cpuinfo, elsewhere the platform module knows."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
