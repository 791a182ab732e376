"""Time a variant and the original model in turns, in one process."""

from functools import partial
from pathlib import Path

from stages.core.architecture import opening, rules
from stages.core.evaluation import notes
from stages.core.evaluation.timing import compare
from stages.core.forms import checkpoint
from stages.core.process import command, devices
from stages.core.process.artifacts import write_json
from stages.core.process.progress import progress
from stages.core.settings import params
from stages.core.text import corpus


def main(profile: str, variant: str, original: Path, model: Path, tokens: Path, out: Path) -> None:
    rules.validate_variant(profile, model)
    device = devices.start(params.section(profile, "runtime"))
    spec = params.section(profile, "latency")
    variant_model = checkpoint.load(model)[0].to(device).model
    pair = {"original": opening.open_snapshot(original).to(device), "variant": variant_model}
    prompt = corpus.pack(corpus.read_tokens(tokens, spec.prompt_tokens), spec.prompt_tokens).to(device)
    watch = partial(progress, what=f"latency {variant}")
    measured = compare(pair, prompt, spec.new_tokens, spec.warmup, spec.repeats, watch)
    extra = {}
    if protocol := spec.seed_protocol:
        start = corpus.read_tokens(tokens, protocol.prompt_tokens)[None].to(device)
        extra["seed_ms"] = notes.generation_ms(pair["variant"], start, protocol.length, protocol.repeats)
    whole = {
        name: times["prefill_ms"] + spec.new_tokens * times["decode_ms_per_token"] for name, times in measured.items()
    }
    write_json(
        out,
        {
            **measured["variant"],
            "original_prefill_ms": measured["original"]["prefill_ms"],
            "original_decode_ms_per_token": measured["original"]["decode_ms_per_token"],
            "speedup": whole["original"] / whole["variant"],
            **extra,
            "environment": devices.environment(device),
        },
    )


if __name__ == "__main__":
    command.entry(main)
