"""The figures of a study that nobody ran: enough for a report, different for every variant."""

from pathlib import Path
from typing import Any

from closure import ROOT

from stages.core.reporting import published
from stages.core.reporting.study import Study

NAMES = (
    "original", "softshare", "softshare_seed", "merged_4", "merged_6", "merged_8", "merged_10", "compressed_4",
    "compressed_6", "compressed_8", "compressed_10", "dropped_3", "dropped_6", "svd", "pruned",
)  # fmt: skip
PLACE = {"device": "abacus", "precision": "float32", "threads": 2, "python": "3.11", "torch": "2.13"}
PROMPT, WRITTEN = 'Once <b>bold</b> & "free"', "</p><script>alert('x')</script> *stars* `ticks`"


def study(names: tuple[str, ...] = NAMES, model: str = "data/model", seeds: bool = True, other: bool = True) -> Study:
    """A study of these variants; `seeds` and `other` say whether the notes' protocol and another text were measured."""
    rank = {name: number for number, name in enumerate(names)}

    def each(make: Any) -> dict[str, Any]:
        return {name: make(name, rank[name]) for name in names}

    def searched(name: str) -> dict[str, Any]:
        if name == "svd":  # as a mixture is searched
            kinds = ({"form": "sparse", "kept": 9}, {"form": "low_rank", "rank": 3}, {"form": "dense"})
            forms = {str(n): {"in": kinds[n % 3], "out": {"form": "low_rank", "rank": 0}} for n in range(12)}
            shares = {str(n): {"in": (0.5, 0.3, 1.0)[n % 3], "out": 0.0} for n in range(12)}
            return {"groups": [], "candidates": [], "forms": forms, "shares": shares, "original_perplexity": 1.72}
        if not name.startswith("softshare"):
            return {"groups": [] if name == "original" else [[0, 1, 2, 3], [4, 5, 6, 7]], "candidates": []}
        cost = {first: 1.75 + 0.02 * (first - 3) ** 2 + 0.01 * rank[name] for first in range(9)}
        return {
            "groups": [[3, 4, 5, 6]],
            "candidates": [{"windows": [[first, first + 3]], "perplexity": cost[first]} for first in cost],
            "original_perplexity": 1.72,
            "tokens": 8192,
        }

    def course(name: str, n: int) -> dict[str, Any]:
        looks = [{"tokens": 16384 * k, "perplexity": 1.7 + 2.5**n / (1 + 9 * k)} for k in range(5)]
        return {
            "tokens": 65536,
            "kept_tokens": 65536,
            "validation_before": looks[0]["perplexity"],
            "validation_after": looks[-1]["perplexity"],
            "environment": PLACE | {"precision": "bfloat16"},
            "looks": looks,
        }

    def rouge(n: int) -> dict[str, float]:
        found = {f"{key}": 0.4 / (1 + 0.1 * n) for key in ("rouge1", "rouge2", "rougeL", "rougeLsum")}
        return found | {f"lead3_{key}": 0.31 for key in found} | (
            {f"seed_{key}": 0.2 for key in ("rouge1", "rouge2", "rougeL")} if seeds else {}
        )  # fmt: skip

    return Study(
        profile="small",
        provenance={
            "model": model, "gguf_file": None, "resolved_revision": None, "model_type": "gpt2", "layers": 12,
            "parameters": 2_674_432, "sha256": "0345b144ff8c" * 5 + "0000",
        },  # fmt: skip
        overlap={
            "validation": {"rows": 100, "shared_rows": 0, "characters": 9000, "shared_characters": 0},
            "test": {"rows": 1250, "shared_rows": 25, "characters": 40000, "shared_characters": 600},
            **({"other": {"rows": 20, "shared_rows": 1, "characters": 900, "shared_characters": 9}} if other else {}),
        },
        calibration={"sha256": "ab" * 32, "activation_tokens": 4000, "moment_tokens": 32768, "sequence_length": 128},
        alignment={
            "tokens": 4000,
            "neurons": 512,
            "independent": 0.046,
            "sites": {
                site: {
                    "null": 0.06,
                    "dead_neurons": {"0": 0, "1": 2},
                    "pairs": {
                        f"{a}-{b}": {"matched": high - 0.02 * (b - a) - 0.01 * a, "unmatched": 0.07 / (1 + a)}
                        for a in range(12)
                        for b in range(a + 1, min(12, a + 10))
                    },
                }
                for site, high in {"post_activation": 0.45, "pre_activation": 0.55}.items()
            },
        },
        windows=each(lambda name, n: searched(name)),
        sizes=each(
            lambda name, n: {
                "parameters": 2_674_432 - 140_000 * n,
                "dense_parameters": 2_674_432,
                "ffn_parameters": 1_580_544 - 90_000 * n,
                "parameter_ratio": 1 - 140_000 * n / 2_674_432,
                "checkpoint_mb": 10.7 - 0.5 * n,
            }
        ),
        recovery=each(course),
        training=each(
            lambda name, n: [{"step": s, "tokens": 2048.0 * s, "loss": 0.5 + 2 * (n + 1) / s} for s in range(1, 33)]
        ),
        perplexity=each(
            lambda name, n: {
                "before": 1.646 * 2.3**n, "after": 1.646 + 0.01 * 1.9**n, "after_spread": 0.002, "seeds": 1 + n % 2,
                "tokens": 16384, "environment": PLACE,
            }
            | ({"seed_before": 3.0 + n, "seed_after": 2.0 + n} if seeds else {})
            | ({"other_before": 4.0 + n, "other_after": 3.5 + n, "other_tokens": 4567} if other else {})
        ),
        margins=each(lambda name, n: 0.001 * n),
        untold=[],
        latency=each(
            lambda name, n: {
                "prefill_ms": 8.0 - 0.4 * n, "decode_ms_per_token": 2.5 / (1 + 0.1 * n),
                "original_prefill_ms": 8.1, "original_decode_ms_per_token": 2.6, "speedup": 1 + 0.1 * n * n / 7,
                "environment": PLACE,
            } | ({"seed_ms": 150.0 - n} if seeds else {})
        ),
        sentiment=each(
            lambda name, n: {
                "accuracy": 0.95 - 0.02 * n, "accuracy_low": 0.93 - 0.02 * n, "accuracy_high": 0.97 - 0.02 * n,
                "macro_f1": 0.94 - 0.02 * n, "majority": 0.5, "examples": 400,
                "accuracy_mean": 0.9, "seeds": 1, "accuracy_spread": 0.0,
                "environment": PLACE,
            }
        ),
        summarization=each(lambda name, n: rouge(n) | {"articles": 100, "seeds": 1, "environment": PLACE}),
        samples=each(
            lambda name, n: [
                {"stage": stage, "way": way, "prompt": PROMPT, "continuation": f"{name}: {WRITTEN}"}
                for stage in ("before", "after")
                for way in ("greedy", "sampled")
            ]
        ),
        published=published.read(ROOT / "data" / "published.yaml"),
    )  # fmt: skip


def lay_out(found: Study, folder: Path) -> dict[str, Path]:
    """The study as the files that the stage `report` reads; option -> path."""
    import numpy as np
    from scipy.special import stdtrit

    from stages.core.process.artifacts import write_csv, write_json
    from stages.core.tasks import losses

    paths = {}
    for kind in ("provenance", "overlap", "calibration", "alignment"):
        paths[kind] = folder / f"{kind}.json"
        write_json(paths[kind], getattr(found, kind))
    each = ("windows", "sizes", "recovery", "perplexity", "latency", "sentiment", "summarization", "samples")
    for kind in (*each, "training"):
        paths[kind] = folder / kind
        for name, figures in getattr(found, kind).items():
            write = write_csv if kind == "training" else write_json
            write(paths[kind] / (f"{name}.csv" if kind == "training" else f"{name}.json"), figures)
    paths["losses"] = folder / "losses"
    for name, margin in found.margins.items():
        # Of two draws the mean lies half their difference from each: that is the standard error.
        apart = margin / stdtrit(1, 0.975) * np.array([1.0, -1.0]) + np.log(found.perplexity[name]["after"])
        losses.keep(paths["losses"] / f"{name}.parquet", apart, apart, block=1)
    paths["tokens"] = folder / "test.parquet"  # read where samples are images
    return paths | {"literature": ROOT / "data" / "published.yaml", "templates": ROOT / "templates"}
