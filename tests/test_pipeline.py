"""The whole DAG in an empty clone, with budgets of seconds: what a new user's `make repro` does, and what it keeps."""

import json
import subprocess
import sys

import pytest
from shrunk import KEPT, edit, run, stages_run

from stages.core.study import layout


def test_metrics_hold_every_variant(clone):
    summary = json.loads((clone / "metrics/summary.json").read_text())
    assert tuple(summary) == KEPT
    for row in summary.values():
        assert row.keys() == {
            "parameters", "dense_parameters", "ffn_parameters", "parameter_ratio", "checkpoint_mb", "perplexity",
            "latency", "sentiment", "summarization",
        }  # fmt: skip
        assert row["perplexity"].keys() == {"before", "after"}
        assert row["latency"].keys() == {"prefill_ms", "decode_ms_per_token", "speedup"}
        assert row["sentiment"].keys() == {"accuracy"}
        assert row["summarization"].keys() == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
        # A model of a few steps may write nothing that its summary has.
        assert all(
            value >= 0 for part in row.values() for value in (part.values() if isinstance(part, dict) else [part])
        )
    assert summary["original"]["parameter_ratio"] == 1
    assert summary["merged_4"]["dense_parameters"] == summary["original"]["parameters"]
    for name in KEPT:
        assert json.loads((clone / f"metrics/variants/{name}.json").read_text()) == summary[name]


def test_report_shows_every_variant_and_window(clone):
    report = (clone / "metrics/report.md").read_text()
    assert all(f"| {name} |" in report for name in KEPT)
    tried = json.loads((clone / "artifacts/windows/softshare.json").read_text())["candidates"]
    assert len(tried) > 21  # every window of two or three layers, and layouts of several
    assert all(f"| {layout(candidate['windows'])}" in report for candidate in tried)
    page = (clone / "metrics/report.html").read_text()
    for name in ("perplexity_by_size", "perplexity_by_speed", "window_search", "correlations", "training"):
        assert (clone / f"metrics/plots/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f'id="{name}-figure_1"' in page
    assert all(f"**{name}**" in (clone / "metrics/samples.md").read_text() for name in KEPT)


def test_second_run_does_nothing(clone):
    assert not stages_run(run(clone, "dvc", "repro"))
    assert "up to date" in run(clone, "dvc", "status")


def test_metrics_show_and_diff_name_every_figure(clone):
    table = run(clone, "dvc", "metrics", "show")
    assert all(f"{name}.json" in table for name in KEPT)
    assert all(column in table for column in ("perplexity.after", "parameter_ratio", "latency.speedup"))


def test_one_variants_value_reruns_its_chain_only(clone):
    # merged_4 starts so far from the original that whatever it learns is kept: every stage after it has new input.
    def distilled(values):
        values["variants"]["merged_4"]["finetune"]["distill"] = {"logits": 0.5}

    edit(clone, distilled)
    chain = ("finetune", "sentiment", "summarize", "perplexity", "generate", "latency")
    assert stages_run(run(clone, "dvc", "repro")) == {f"{stage}@merged_4" for stage in chain} | {"report"}


@pytest.mark.parametrize(
    ("keys", "value", "changed"),
    [
        (("variants", "merged_4", "surgery", "base"), "first", {"search@merged_4", "surgery@merged_4"}),
        (("variants", "compressed_6", "windows", "size"), 4, {"search@compressed_6"}),
        (("profiles", "small", "align"), None, set()),
        (("profiles", "small", "extract", "sites"), ["pre_activation"], {"extract"}),
        (("profiles", "small", "correlate", "reach"), 11, {"correlate", "align"}),
        (("profiles", "small", "search", "max_tokens"), 128, {f"search@{name}" for name in KEPT}),
        (("profiles", "small", "latency", "repeats"), 3, {f"latency@{name}" for name in KEPT}),
        (("profiles", "small", "generate", "seed"), 1, {f"generate@{name}" for name in KEPT}),
        (("profiles", "small", "sentiment", "seeds"), [1], {f"sentiment@{name}" for name in KEPT}),
        (("profiles", "small", "reviews", "max_tokens"), 40, {"reviews"}),
        (("profiles", "small", "summarize", "beams"), 2, {f"summarize@{name}" for name in KEPT}),
        (("profiles", "small", "articles", "source", "seed"), 1, {"articles"}),
        (("profiles", "small", "perplexity", "stride"), 64, {f"perplexity@{name}" for name in KEPT}),
        (("profiles", "small", "finetune", "seeds"), [1], {f"finetune@{name}" for name in KEPT}),
        (("profiles", "gpt2", "finetune", "seeds"), [1], set()),
    ],
)
def test_a_changed_value_touches_the_stages_that_read_it(clone, keys, value, changed):
    """`dvc status` names the stages whose own inputs changed; what follows from them is the graph's business."""
    before = (clone / "params.yaml").read_text()

    def change(values):
        for key in keys[:-1]:
            values = values[key]
        if value is not None:
            values[keys[-1]] = value

    try:
        edit(clone, change)
        touched = set(json.loads(run(clone, "dvc", "status", "--json"))) - {"report"}
        assert touched == changed
    finally:
        (clone / "params.yaml").write_text(before)


def test_export_opens_in_stock_transformers_and_agrees(clone):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.core import sharing

    run(clone, sys.executable, "-m", "stages.commands.export", "--variant", "softshare", "--to", "exported/softshare")
    stock = AutoModelForCausalLM.from_pretrained(clone / "exported/softshare").eval()
    words = AutoTokenizer.from_pretrained(clone / "exported/softshare")
    ours, _ = sharing.load(clone / "artifacts/finetuned/softshare")
    ids = torch.tensor([words("One cold morning the clockmaker")["input_ids"]])
    with torch.no_grad():
        assert (stock(ids).logits - ours(ids).logits).abs().max() < 1e-5


def test_a_mistake_in_params_is_one_line_before_any_model_loads(clone):
    before = (clone / "params.yaml").read_text()

    def mistake(values):
        values["variants"]["merged_4"]["surgery"]["base"] = "median"

    try:
        edit(clone, mistake)
        command = [sys.executable, "-m", "stages.search", "--profile", "small", "--variant", "merged_4"]
        for option in ("model", "provenance", "tokens", "permutations", "moments", "out"):
            command += [f"--{option}", "nowhere"]
        done = subprocess.run(command, cwd=clone, text=True, capture_output=True)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
        assert "variants.merged_4.surgery.base" in done.stderr and "median" in done.stderr
    finally:
        (clone / "params.yaml").write_text(before)


def test_the_ablation_of_a_window_is_a_table_metrics_and_a_plot(clone):
    import pandas as pd

    table = run(
        clone, sys.executable, "-m", "stages.commands.ablate",
        "--window", "2-3", "--rank", "2", "--recover", "yes", "--to", "metrics/ablation",
    )  # fmt: skip
    rows = pd.read_csv(clone / "metrics/ablation/2-3_rank2.csv")
    figures = json.loads((clone / "metrics/ablation/2-3_rank2.json").read_text())
    assert len(rows) == len(figures) - 1 == 7 * 8 + 2 * 6 and (rows["perplexity"] > 1).all()
    assert all(word in table for word in ("joint", "centre", "window, distilled"))
    assert (clone / "metrics/ablation/2-3_rank2.png").read_bytes().startswith(b"\x89PNG")
