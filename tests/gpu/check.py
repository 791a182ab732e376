"""What only a GPU can tell: the same results as on the CPU, memory and time. A script: python tests/gpu/check.py

Needs torch, transformers, safetensors, numpy, pydantic and threadpoolctl; scipy for the alignment. It prints a table
and writes $OUT/gpu.json (here, without $OUT). A check that fails says why and the others go on; the exit status counts
them.
Options: --device cpu runs the same at a tiny size, --only NAME one check. Times are medians after a warm-up.
"""

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
try:
    import pytest  # noqa: F401
except ImportError:  # `tiny` asks it for one mark
    sys.modules["pytest"] = SimpleNamespace(
        mark=SimpleNamespace(parametrize=lambda *args, **options: lambda function: function)
    )

import torch  # noqa: E402

CHECKS = {}
RELATIVE = 1e-4  # by which a float32 result may differ between devices


def check(function):
    """A check: takes the device and whether all is to be tiny, returns figures, raises where something is wrong."""
    CHECKS[function.__name__] = function
    return function


# Helpers


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function, device, repeats=5, warmup=2):
    """The median time of a call that has ended."""
    times = []
    for turn in range(warmup + repeats):
        wait(device)
        begin = time.perf_counter()
        function()
        wait(device)
        if turn >= warmup:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def peak(function, device):
    """Bytes that a call takes at most beyond what was there (0 on the CPU)."""
    if device.type != "cuda":
        function()
        return 0
    torch.cuda.empty_cache()
    wait(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    wait(device)
    return torch.cuda.max_memory_allocated(device) - before


def apart(found, wanted):
    """The largest difference, relative to the largest entry."""
    found, wanted = (value.detach().double().cpu() for value in (found, wanted))
    return ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)).item()


@contextmanager
def matmul(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def built(tiny_size, kind="gpt2", **changes):
    """A model with random weights of GPT-2 small's shape or of SmolLM2-135M's, or a tiny one like it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from stages.core.architecture import attention

    if kind == "gpt2":
        config = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}
        config |= {"vocab_size": 50257, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        small = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 97}
    else:
        config = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
        config |= {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048}
        config |= {"vocab_size": 49152, "tie_word_embeddings": True}
        small = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6}
        small |= {"num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64}
    torch.manual_seed(0)
    config |= {**(small if tiny_size else {}), **changes, "bos_token_id": 0, "eos_token_id": 0}
    attention.register()
    # The project's own `blank` draws no weights.
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config.pop("model_type"), **config), dtype=torch.float32
    ).eval()


def text(model, rows, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)


# Equality


def _methods(name, device):
    import methods
    import tiny

    model = tiny.model(name)
    known, ids, figures = tiny.calibration(model), tiny.ids(), {}
    there = copy.deepcopy(model).to(device)
    for method, spec in methods.METHODS.items():
        here, _ = tiny.operate(model, tiny.GROUPS, known, spec)
        other, _ = tiny.operate(there, tiny.GROUPS, tiny.moved(known, device), spec)
        assert {p.device.type for p in other.parameters()} == {device.type}, f"{method}: parameters elsewhere"
        figures[method] = apart(tiny.logits(other, ids.to(device)), tiny.logits(here, ids))
    worst = max(figures, key=figures.get)
    assert figures[worst] < RELATIVE, f"{worst}: logits differ by {figures[worst]:.1e}; all: {figures}"
    return {"methods": len(figures), "worst": worst, "relative": figures[worst]}


@check
def surgery_gpt2(device, small):
    return _methods("gpt2", device)


@check
def surgery_grouped_llama(device, small):
    return _methods("llama", device)


@check
def surgery_qwen2(device, small):
    return _methods("qwen2", device)


def _arms(name, device):
    import tiny

    from stages.core.shrinking import ablation
    from stages.core.tasks.language import perplexity

    model, found = tiny.model(name), {}
    tokens = tiny.ids(8, 32, seed=9).flatten()
    for place in (torch.device("cpu"), device):
        known = tiny.moved(tiny.calibration(model), place)
        rows = ablation.untrained(
            tiny.view(copy.deepcopy(model).to(place)), [1, 2, 3], known, ["pre_activation"], 3,
            lambda changed: perplexity(changed.model, tokens, 32, 16, 4),
        )  # fmt: skip
        found[place.type] = {tuple(row[key] for key in ablation.START): row["perplexity"] for row in rows}
    gaps = {arm: abs(found[device.type][arm] / value - 1) for arm, value in found["cpu"].items()}
    worst = max(gaps, key=gaps.get)
    assert gaps[worst] < RELATIVE, f"{worst}: perplexity differs by {gaps[worst]:.1e}"
    return {"arms": len(gaps), "worst": " ".join(worst), "relative": gaps[worst]}


@check
def ablation_gpt2(device, small):
    return _arms("gpt2", device)


@check
def ablation_grouped_llama(device, small):
    return _arms("llama", device)


@check
def calibration(device, small):
    """Activations, moments, correlations, features and influence."""
    import tiny

    from stages.core.architecture.depth import influence
    from stages.core.calibration import activations
    from stages.core.calibration.correlation import correlations, standardised
    from stages.core.calibration.moments import MomentStream
    from stages.core.evaluation import classification

    found = {}
    batches = [tiny.ids(4, 32, seed) for seed in range(3)]
    rows = [tiny.ids(1, 5 + i, i)[0] for i in range(7)]
    for place in (torch.device("cpu"), device):
        model = tiny.model("llama").to(place)
        view = tiny.view(model)
        moments, seen_rows = MomentStream(), []
        for seen in activations.stream(view, tuple(activations.SITES), batches):
            moments.update(seen["post_activation"][2])
            seen_rows.append([seen["pre_activation"][layer] for layer in (1, 2)])
        known = [standardised(torch.cat(parts))[0] for parts in zip(*seen_rows)]
        found[place.type] = {
            "moments": moments.moments().second,
            "correlation": correlations(*known),
            "features": classification.features(model, rows, 3),
            "influence": influence(view, [batch.to(place) for batch in batches]),
        }
    gaps = {what: apart(found[device.type][what], value) for what, value in found["cpu"].items()}
    worst = max(gaps, key=gaps.get)
    assert gaps[worst] < RELATIVE, str(gaps)
    return {"worst": worst, "relative": gaps[worst]}


@check
def alignment(device, small):
    """Needs scipy. By weights on the device, and by correlations."""
    import tiny

    from stages.core.calibration import alignment as matching

    model, found = tiny.model("llama"), {}
    for place in (torch.device("cpu"), device):
        there, known = tiny.view(copy.deepcopy(model).to(place)), tiny.moved(tiny.calibration(model), place)
        orders = matching.by_cost(there.read_double, known.moments, [[0, 1, 2]], ["centre"])
        found[place.type] = orders["centre"][0]
    same = [(found["cpu"][layer] == found[device.type][layer]).all() for layer in (1, 2)]
    assert all(same), "permutations differ"
    return {"permutations": len(same)}


# Training


def _recover(device, name, precision, folder=None, kill_after=None, seed=0):
    import tiny

    from stages.core.process import devices
    from stages.core.settings.recoveries import Distill, Recovery
    from stages.core.settings.trainings import Finetune
    from stages.core.tasks.language import Language
    from stages.core.training import recovery

    recipe = Finetune(
        epochs=2, batch_size=4, warmup=0.1, weight_decay=0.01, clip=1.0, max_tokens=None, sequence_length=16, seeds=[0],
        learning_rate={"all": 1e-2, "deltas": 1e-2, "base": 1e-2, "norms": 1e-2},
        validation={"times": 2, "max_tokens": 256},
    )  # fmt: skip
    rows = (torch.arange(16)[None] * 7 + torch.arange(24)[:, None] * 3) % 31
    wanted = Recovery(
        train="window", frobenius=1e-4, around="start", distill=Distill(logits=0.5, temperature=2.0, hidden=1.0),
        warm_start=0.25,
    )  # fmt: skip
    teacher = tiny.view(tiny.model(name).to(device))
    model, sharing = tiny.shared(name, 3)
    model.to(device)
    task, steps = Language(16, 16, 4), []

    def watch(batches):
        for batch in batches:
            if kill_after is not None and len(steps) == kill_after:
                raise KeyboardInterrupt
            steps.append(1)
            yield batch

    try:
        history = recovery.recover(
            tiny.view(model), sharing, teacher, task, rows, rows.flatten(), recipe, wanted, seed,
            autocast=devices.autocast(device, precision), watch=watch, unfinished=folder,
        )  # fmt: skip
    except KeyboardInterrupt:
        history = None
    return model, history, len(steps)


def _trains(name, device, precision):
    _, found, _ = _recover(device, name, precision)
    losses = [row["loss"] for row in found.curve]
    values = [row["value"] for row in found.validation]
    assert all(map(math.isfinite, losses)) and min(values) < values[0], f"{losses}, validation {values}"
    _, here, _ = _recover(torch.device("cpu"), name, "float32")
    first = abs(losses[0] / here.curve[0]["loss"] - 1)
    limit = 1e-2 if precision == "float32" else 0.1  # after a warm start: AdamW's first steps magnify rounding
    assert first < limit, f"first loss differs by {first:.1e} from the CPU's"
    before = abs(values[0] / here.validation[0]["value"] - 1)
    assert before < 1e-2, f"validation before training differs by {before:.1e}: it is float32 whatever trains"
    return {"steps": len(losses), "first_loss_relative": first, "validation": [values[0], min(values)]}


@check
def losses_and_gradients(device, small):
    """Of every objective: cross-entropy, logits and hidden states of a teacher, the penalty, single FFNs."""
    import tiny

    from stages.core.settings.recoveries import Distill
    from stages.core.training import recovery

    rows, figures = (torch.arange(16)[None] * 7 + torch.arange(8)[:, None] * 3) % 31, {}
    for name in ("gpt2", "llama", "qwen2"):
        found = {}
        for place in (torch.device("cpu"), device):
            model, _ = tiny.shared(name, 3)
            model.to(place)
            teacher = tiny.model(name).to(place)
            penalty = recovery.frobenius(model, "start")
            objectives = {
                "whole": recovery.end_to_end(
                    tiny.TASK, model, rows, teacher, Distill(logits=0.5, temperature=2.0, hidden=1.0), penalty
                ),
                "single": recovery.layer_by_layer(tiny.TASK, tiny.view(model), rows, tiny.view(teacher), [0, 1, 2]),
            }
            for kind, objective in objectives.items():
                model.zero_grad(set_to_none=True)
                _, loss = objective(torch.arange(8))
                loss.backward()
                found[place.type, kind] = [loss] + [p.grad for p in model.parameters() if p.grad is not None]
        for kind in objectives:
            gaps = [apart(a, b) for a, b in zip(found[device.type, kind], found["cpu", kind], strict=True)]
            figures[f"{name} {kind}"] = {"loss": gaps[0], "gradients": max(gaps[1:])}
    assert all(row["loss"] < RELATIVE and row["gradients"] < 1e-3 for row in figures.values()), str(figures)
    return figures


@check
def recovery_float32(device, small):
    return {name: _trains(name, device, "float32") for name in ("gpt2", "llama")}


@check
def recovery_bfloat16(device, small):
    from stages.core.process import devices

    own = devices.precision(device, "bfloat16") == "bfloat16"
    if small and not own:
        return {"left out": "this processor has no bfloat16 of its own"}
    assert own, "this card has no bfloat16 of its own"
    return {name: _trains(name, device, "bfloat16") for name in ("gpt2", "llama")}


@check
def resuming(device, small):
    from stages.core.training import resuming as states

    due, states.Unfinished.due = states.Unfinished.due, lambda self: True
    try:
        whole, history, steps = _recover(device, "gpt2", "float32")
        with tempfile.TemporaryDirectory() as folder:
            _recover(device, "gpt2", "float32", Path(folder), kill_after=7)
            torch.manual_seed(99)
            resumed, again, rest = _recover(device, "gpt2", "float32", Path(folder))
    finally:
        states.Unfinished.due = due
    assert rest < steps, f"started anew: {rest} steps instead of fewer than {steps}"
    gap = max(apart(a, b) for a, b in zip(resumed.parameters(), whole.parameters()))
    last = abs(again.curve[-1]["loss"] / history.curve[-1]["loss"] - 1)
    twice, _, _ = _recover(device, "gpt2", "float32")
    noise = max(apart(a, b) for a, b in zip(twice.parameters(), whole.parameters()))
    assert gap < max(5e-2, 10 * noise) and last < 1e-2, f"ends {gap:.1e} apart, last loss {last:.1e}"
    return {
        "steps": steps, "resumed_steps": rest, "parameters_relative": gap, "two_whole_runs_relative": noise,
        "bitwise": gap == 0.0,
    }  # fmt: skip


@check
def sentiment_and_summary_training(device, small):
    import tiny

    from stages.core.evaluation import classification, summaries
    from stages.core.settings.trainings import HeadRecipe, Schedule
    from stages.core.training.loop import train

    usual = {"epochs": 2, "batch_size": 4, "warmup": 0.1, "weight_decay": 0.01, "clip": 1.0}
    model = tiny.model("llama").to(device)
    rows = [tiny.ids(1, 5 + i, i)[0] for i in range(8)]
    labels = torch.arange(8) % 2
    recipe = HeadRecipe(**usual, train="all", learning_rate={"head": 1e-2, "model": 1e-3}, seeds=[0])
    states = classification.features(model, rows, 4)
    head = classification.fit(model, list(model.parameters()), rows, labels, states, recipe, 0)
    sure = classification.probabilities(head, classification.features(model, rows, 4))
    assert sure.isfinite().all() and sure.device.type == "cpu"
    model = tiny.model("gpt2").to(device)
    asked, wanted = [row.tolist() for row in rows], [[1, 2, 3]] * 8
    objective = summaries.summary_loss(model, asked, wanted)
    found = train(model, 8, objective, [(list(model.parameters()), 1e-2)], Schedule(**usual), 0)
    assert found.curve[-1]["loss"] < found.curve[0]["loss"]
    return {"sentiment_rows": len(sure), "summary_loss": [found.curve[0]["loss"], found.curve[-1]["loss"]]}


# Generation


@check
def beams_padded_on_the_left(device, small):
    import tiny

    from stages.core.evaluation import summaries

    figures = {}
    for name in ("gpt2", "llama"):
        model = tiny.model(name, eos_token_id=0, **({"n_positions": 128} if name == "gpt2" else {})).to(device)
        asked = [tiny.ids(1, length, length)[0].tolist() for length in (5, 9, 17, 30)]
        found = {}
        for size in (4, 1):
            spec = SimpleNamespace(batch_size=size, beams=3, no_repeat_ngram=3)
            found[size] = summaries.write(model, asked, spec, 12, "continuation")
        assert found[4] == found[1], f"{name}: {found}"
        figures[name] = {"prompts": len(asked), "tokens": sum(map(len, found[1]))}
    return figures


# Attention


@check
def grouped_attention_float32(device, small):
    """SmolLM2-135M's shape, 4 x 1,024 tokens: the library's attention beside the one that repeats keys and values."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from stages.core.architecture import attention

    model = built(small, "llama").to(device)
    ids = text(model, 4, 64 if small else 1024).to(device)
    figures, outputs, gradients = {}, {}, {}

    def step():
        model.zero_grad(set_to_none=True)
        model(ids, labels=ids, use_cache=False).loss.backward()

    @torch.no_grad()
    def score():
        return model(ids, use_cache=False).logits

    try:
        for kind in ("stock", "repeated"):
            if kind == "stock":
                ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa_attention_forward)
            else:
                attention.register()
            outputs[kind] = score()[:, -64:].float().cpu()
            step()
            gradients[kind] = model.model.layers[0].self_attn.k_proj.weight.grad.cpu()
            figures[kind] = {
                "train_peak_gb": peak(step, device) / 1e9,
                "train_ms": 1e3 * seconds(step, device),
                "score_peak_gb": peak(score, device) / 1e9,
                "score_ms": 1e3 * seconds(score, device),
            }
    finally:
        attention.register()
    figures["logits_relative"] = apart(outputs["repeated"], outputs["stock"])
    figures["gradient_relative"] = apart(gradients["repeated"], gradients["stock"])
    assert figures["logits_relative"] < RELATIVE and figures["gradient_relative"] < 1e-3, str(figures)
    return figures


# Memory and devices

SHORT = """
import sys
import torch
from stages.core.process import command, memory
memory.SIZES["profiles.gpt2.finetune.batch_size"] = 4
def main(profile: str):
    torch.empty(2**45, dtype=torch.uint8, device=profile)
sys.modules["__main__"].__file__ = "finetune.py"
command.entry(main)
"""


@check
def out_of_memory_is_one_line(device, small):
    size = SHORT if device.type == "cuda" else SHORT.replace("2**45", "2**60")
    program = [sys.executable, "-c", size, "--profile", str(device)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC")}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    done = subprocess.run(program, cwd=ROOT, env=environment, text=True, capture_output=True)
    lines = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert done.returncode == 1 and len(lines) == 1 and "batch_size (= 4)" in lines[0], done.stderr[-1500:]
    return {"line": lines[0]}


@check
def numbered_device(device, small):
    import tiny

    from stages.core.process import devices
    from stages.core.process.errors import UserError
    from stages.core.settings.profiles import Runtime
    from stages.core.tasks import timing

    if device.type == "cpu":
        return {"record": devices.environment(device)}
    numbered = devices.start(Runtime(device="cuda:0", threads=None))
    assert numbered == torch.device("cuda:0") and torch.cuda.current_device() == 0
    assert devices.start(Runtime(device="auto", threads=None)).type == "cuda"
    model = tiny.model("gpt2").to(numbered)
    times = list(timing.generation(model, tiny.ids(1, 8).to(numbered), 4))
    try:
        devices.start(Runtime(device="cuda:9", threads=None))
        raise AssertionError("cuda:9 was taken")
    except UserError as error:
        refused = str(error)
    return {"record": devices.environment(numbered, "bfloat16"), "refused": refused, "times": times}


# Times, on GPT-2 small's shape with random weights


@check
def times_of_calibration(device, small):
    from stages.core.architecture.view import ModelView
    from stages.core.calibration import activations
    from stages.core.calibration import alignment as matching
    from stages.core.calibration.correlation import correlations, standardised
    from stages.core.calibration.moments import MomentStream

    model = built(small).to(device)
    view, length = ModelView(model), 64 if small else 1000
    batches = [text(model, 1, length, seed) for seed in range(4)]  # 4,000 tokens
    depth, kept, streams = view.depth, [], []

    def extract():
        kept.clear()
        streams[:] = [{"input": MomentStream(), "hidden": MomentStream()} for _ in range(depth)]
        sites = ("input", "pre_activation", "post_activation")
        for seen in activations.stream(view, sites, batches):
            for layer in range(depth):
                streams[layer]["input"].update(seen["input"][layer])
                streams[layer]["hidden"].update(seen["post_activation"][layer])
            kept.append([rows.cpu() for rows in seen["pre_activation"]])

    figures = {"extract_s": seconds(extract, device, repeats=3, warmup=1)}
    columns = [torch.cat([batch[layer] for batch in kept]) for layer in range(depth)]
    matrices = {}

    def correlate():
        first = standardised(columns[0].to(device))[0]
        for layer in range(1, min(10, depth)):
            matrices[0, layer] = correlations(first, standardised(columns[layer].to(device))[0]).cpu().numpy()

    figures["correlate_first_layer_s"] = seconds(correlate, device, repeats=3, warmup=1)
    try:
        begin = time.perf_counter()
        matching.match(matrices[0, 1])
        figures["match_one_pair_s"] = time.perf_counter() - begin
        moments = {layer: {site: s.moments() for site, s in streams[layer].items()} for layer in range(3)}
        centre, own = view.read_double(0), view.read_double(1)
        figures["cost_matrix_s"] = seconds(lambda: matching.cost(centre, own, moments[1]).cpu(), device, repeats=3)
        begin = time.perf_counter()
        matching.by_cost(view.read, moments.__getitem__, [[0, 1, 2]], ["centre"])
        figures["align_three_layers_by_cost_s"] = time.perf_counter() - begin
    except ImportError as error:
        figures["align"] = f"not measured: {error}"
    return figures


@check
def times_of_fits(device, small):
    from stages.core.architecture.view import ModelView
    from stages.core.calibration.moments import Moments
    from stages.core.calibration.statistics import Calibration
    from stages.core.settings.surgeries import Collapse, LowRank, Share
    from stages.core.shrinking import operations

    model = built(small).to(device)
    view, width, hidden = ModelView(model), model.config.n_embd, 4 * model.config.n_embd

    def random_moments(size, seed):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(2 * size, size, dtype=torch.float64, generator=generator).to(device)
        return Moments(rows.mean(0), rows.T @ rows / len(rows))

    kept = {layer: {"input": random_moments(width, layer), "hidden": random_moments(hidden, layer)} for layer in (0, 1)}
    known = Calibration(
        lambda *asked: torch.randperm(hidden, generator=torch.Generator().manual_seed(asked[-1])).to(device),
        lambda layer: {site: Moments(m.mean, m.second) for site, m in kept[layer % 2].items()},
        lambda: [text(model, 2, 64 if small else 1024, seed).to(device) for seed in range(2)],
    )
    usual = {"alignment": "cost", "base": "regression"}
    rank = {"rank": 4 if small else 32, "biases": "own", "bias_correction": True}
    wanted = {
        "share_four_joint_s": Share(method="share", **usual, delta="joint", **rank),
        "share_four_svd_s": Share(method="share", **usual, delta="svd", **rank),
        "collapse_four_s": Collapse(method="collapse", **usual, repair="least_squares"),
        "low_rank_svd_s": LowRank(method="low_rank", fit="svd", ranks="equal", target_parameters=0.8),
        "low_rank_weighted_filled_s": LowRank(method="low_rank", fit="weighted", ranks="filled", target_parameters=0.8),
    }
    figures = {}
    for name, spec in wanted.items():
        try:
            figures[name] = seconds(
                lambda spec=spec: operations.operate(view, [[0, 1, 2, 3]], known, spec), device, repeats=1, warmup=1
            )
        except Exception as error:
            figures[name] = f"{type(error).__name__}: {error}"
    assert all(isinstance(value, float) for value in figures.values()), str(figures)
    return figures


@check
def times_of_training(device, small):
    """One step of 4 x 1,024 tokens: forward, backward, clip, AdamW; all weights, alone and with a teacher's logits."""
    from stages.core.settings.recoveries import Distill
    from stages.core.tasks.language import Language
    from stages.core.training import recovery

    figures = {}
    rows_of, length = 4, 64 if small else 1024
    task = Language(length, length, rows_of)
    for kind in ("gpt2", "llama"):
        teacher = built(small, kind).to(device)
        rows = text(teacher, rows_of, length)
        for name, precision, autocast in [
            ("float32", "highest", False), ("tf32", "high", False), ("bfloat16", "highest", True),
        ]:  # fmt: skip
            for taught in (False, True):
                model = copy.deepcopy(teacher).train()
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
                wanted = Distill(logits=0.5, temperature=2.0) if taught else None
                objective = recovery.end_to_end(task, model, rows, teacher, wanted, None)
                context = torch.autocast(device.type, dtype=torch.bfloat16) if autocast else nullcontext()

                def step(model=model, optimizer=optimizer, objective=objective, context=context):
                    optimizer.zero_grad(set_to_none=True)
                    with context:
                        _, loss = objective(torch.arange(rows_of))
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    return loss.item()

                with matmul(precision):
                    spent = seconds(step, device)
                    figures[f"{kind} {name}{' taught' if taught else ''}"] = {
                        "step_ms": 1e3 * spent,
                        "tokens_per_s": rows_of * length / spent,
                        "peak_gb": peak(step, device) / 1e9,
                    }
                del model, optimizer, objective, step
        del teacher
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return figures


@check
def times_of_scoring(device, small):
    from stages.core.tasks.language import perplexity

    figures, length = {}, 64 if small else 1024
    for kind in ("gpt2", "llama"):
        model = built(small, kind).to(device)
        tokens = text(model, 16, length).flatten()
        for precision in ("highest", "high"):
            with matmul(precision):
                spent = seconds(lambda: perplexity(model, tokens, length, length, 8), device, repeats=3, warmup=1)  # noqa: B023
            figures[f"{kind} {precision}"] = {"tokens_per_s": len(tokens) / spent}
    return figures


@check
def times_of_decoding(device, small):
    """Eager, greedy, one row: what stage latency measures; beside it a model with deltas and one of half the depth."""
    from stages.core.architecture.depth import keep_layers
    from stages.core.architecture.view import ModelView
    from stages.core.forms import structure
    from stages.core.tasks import timing

    model = built(small).to(device)
    view, depth = ModelView(model), model.config.n_layer
    with_deltas = view.copy()
    groups = [list(range(first, min(first + 4, depth))) for first in range(0, depth, 4)]
    structure.install(with_deltas, structure.Sharing(groups=groups, rank=4 if small else 32, biases="own"))
    models = {
        "gpt2": model,
        "shared": with_deltas.model,
        "half": keep_layers(view, list(range(0, depth, 2))).model,
        "llama": built(small, "llama").to(device),
    }
    prompt = text(model, 1, 16 if small else 128).clamp(max=90).to(device)
    turns = timing.turns(models, prompt, 8 if small else 64, warmup=2, repeats=3 if small else 9)
    return {name: timing.summary(rows) for name, rows in turns.items()}


def shown(value):
    """A figure in few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", choices=list(CHECKS))
    options = parser.parse_args()
    device = torch.device(options.device)
    # One process of one thread gives the CPU's results once and for all.
    torch.set_num_threads(min(8, os.cpu_count() or 1))
    results = {"torch": torch.__version__, "python": sys.version.split()[0], "checks": {}}
    try:
        import transformers

        results["transformers"] = transformers.__version__
        results["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        results["cuda"] = torch.version.cuda
    except Exception as error:
        results["error"] = f"{type(error).__name__}: {error}"
    path = Path(os.environ.get("OUT", ".")) / "gpu.json"
    print(shown({key: value for key, value in results.items() if key != "checks"}), flush=True)
    failed = 0
    for name in options.only or CHECKS:
        begin = time.perf_counter()
        try:
            row = {"ok": True, "figures": CHECKS[name](device, device.type != "cuda")}
        except Exception as error:
            failed += 1
            row = {"ok": False, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        row["seconds"] = time.perf_counter() - begin
        results["checks"][name] = row
        path.write_text(json.dumps(results, indent=1, default=str))
        print(f"\n{'ok    ' if row['ok'] else 'FAILED'} {name}  ({row['seconds']:.1f} s)", flush=True)
        figures = row.get("figures", {})
        for key, value in figures.items() if isinstance(figures, dict) else ():
            print(f"       {key}: {shown(value)}", flush=True)
        if not row["ok"]:
            print("       " + "\n       ".join(row["traceback"].strip().splitlines()[-12:]), flush=True)
        if device.type == "cuda":
            try:
                torch.cuda.empty_cache()
            except Exception as error:
                print(f"       the device is lost: {error}", flush=True)
    print(f"\n{len(results['checks']) - failed} of {len(results['checks'])} ok; {path}", flush=True)
    sys.exit(min(failed, 100))


if __name__ == "__main__":
    main()
