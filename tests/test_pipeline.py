"""The whole DAG in an empty clone, with budgets of seconds: what a new user's `make repro` does, and what it keeps."""

import json
import subprocess
import sys
from pathlib import Path

from shrunk import KEPT, STUDY, edit, run, stages_run

from stages.core.reporting.study import layout


def test_metrics_hold_every_variant(clone):
    summary = json.loads((clone / "metrics/summary.json").read_text())
    assert tuple(summary) == KEPT
    for row in summary.values():
        assert row.keys() == {
            "parameters", "dense_parameters", "ffn_parameters", "parameter_ratio", "checkpoint_mb", "perplexity",
            "latency", "sentiment", "summarization",
        }  # fmt: skip
        known = {"before", "after", "other_before", "other_after", "to_control", "margin"}
        assert row["perplexity"].keys() == known
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
        values["variants"]["merged_4"]["finetune"]["distill"] = {"hidden": 0.0}

    before = (clone / "params.yaml").read_text()
    edit(clone, distilled)
    chain = ("finetune", "sentiment", "summarize", "perplexity", "generate", "latency")
    assert stages_run(run(clone, *STUDY)) == {f"{stage}@merged_4" for stage in chain} | {"report"}
    # And back: all but the report, whose pages are in git and in no cache, is remembered.
    (clone / "params.yaml").write_text(before)
    assert stages_run(run(clone, "dvc", "repro")) == {"report"}


def test_verify_finds_no_damage(clone):
    assert " 0 damaged or changed, 0 missing" in run(clone, sys.executable, "-m", "stages.commands.verify")


def test_export_opens_in_stock_transformers_and_agrees(clone, monkeypatch):
    import tiny
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.commands import export

    monkeypatch.chdir(clone)
    export.main(variant="softshare", to=Path("exported/softshare"), form="dense", dtype="")
    stock = AutoModelForCausalLM.from_pretrained(clone / "exported/softshare").eval()
    words = AutoTokenizer.from_pretrained(clone / "exported/softshare")
    ours, _ = tiny.load(clone / "artifacts/finetuned/softshare")
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


def test_the_ablation_of_a_window_is_a_table_metrics_and_a_plot(clone, monkeypatch, capsys):
    import pandas as pd

    from stages.commands import ablate

    monkeypatch.chdir(clone)
    ablate.main(window="2-3", rank="2", recover="yes", to=Path("metrics/ablation"))
    table = capsys.readouterr().out
    rows = pd.read_csv(clone / "metrics/ablation/2-3_rank2.csv")
    figures = json.loads((clone / "metrics/ablation/2-3_rank2.json").read_text())
    assert figures["study"] == {
        "profile": figures["study"]["profile"],
        "sha256": json.loads((clone / "artifacts/provenance.json").read_text())["sha256"],
    }
    assert len(rows) == len(figures) - 2 == 7 * 11 + 2 * 5 * 2 and (rows["perplexity"] > 1).all()
    assert all(word in table for word in ("joint", "centre", "window, distilled"))
    assert (clone / "metrics/ablation/2-3_rank2.png").read_bytes().startswith(b"\x89PNG")
