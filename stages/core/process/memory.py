"""What a stage that runs out of memory says: which keys of params.yaml to lower."""

import sys
from typing import Any

# What a process has read of params.yaml that its memory grows with: key -> value.
SIZES: dict[str, int] = {}
# The names of such keys, those first that change no result.
GROWING = ("batch_size", "sequence_length", "context", "reach", "beams")


def note(key: str, section: Any) -> None:
    """Remember the sizes in the section of params.yaml whose key is `key`, and in the sections within it."""
    for name, value in section:
        if name in GROWING:
            SIZES[f"{key}.{name}"] = value
        elif hasattr(value, "model_fields_set"):
            note(f"{key}.{name}", value)


def is_shortage(error: BaseException) -> bool:
    """Whether an exception says that the memory of a device, or the machine's own, is used up."""
    # Where torch was never imported, it has raised nothing.
    torch = sys.modules.get("torch")
    if torch and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def shortage(stage: str, error: BaseException) -> str:
    """One line: the stage, what was asked for in vain, and the keys to lower with their values."""
    reason = " ".join(str(error).split()).split(". ")
    said = ". ".join(part.rstrip(".") for part in reason[:2]) or type(error).__name__
    sizes = sorted(SIZES, key=lambda key: GROWING.index(key.rsplit(".", 1)[1]))
    lower = ", ".join(f"{key} (= {SIZES[key]})" for key in sizes)
    advice = f"lower {lower} in params.yaml" if lower else "no key of params.yaml makes this stage smaller"
    return f"stage {stage} is out of memory ({said}): {advice}, or run it where there is more (runtime.device)"
