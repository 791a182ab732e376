"""Every method at a given size: it stores at most that, and a size that it cannot reach is left out."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import tiny
import torch

from stages.commands import curve as command
from stages.commands import curve_picture, points
from stages.commands import kept as kept_on_disk
from stages.core.architecture import targets
from stages.core.process.errors import UserError
from stages.core.reporting import paired
from stages.core.shrinking import curve, mixing
from stages.core.shrinking.arranging import Surveyed
from stages.core.shrinking.probes import Judge, Probed

ROOT = Path(__file__).parent.parent
LONGEST = tiny.LAYERS


def test_every_method_stores_at_most_the_size():
    model = tiny.model("llama")
    view, known, asked = tiny.view(model), tiny.calibration(model), []

    def score(changed):
        asked.append(changed)
        return 2.0 + len(asked) / 1000

    judge = Judge(score, lambda view: None, lambda view, reference: 0.01)
    plans = curve.plans([0.9], view.shape, LONGEST)
    assert [name for name, _ in plans] == [name for name in curve.METHODS if curve.fits(name, 0.9, view.shape, LONGEST)]
    assert {"softshare", "mix", "pruned", "dropped", "dropped_searched", "basis_2"} <= {name for name, _ in plans}
    # What is known of a smaller size serves this one.
    probed, surveyed = curve.probe(view, known, judge), curve.survey(view, known, judge, 0.7, LONGEST)
    found = curve.tried(0.9, view, known, judge, probed, surveyed, LONGEST)
    for name, share in plans:
        chosen = curve.kinds(found, name)[0] if curve.in_mixture(name) else None
        made = list(curve.make(name, share, view, known, chosen))
        assert len(made) == 1 + len(curve.METHODS[name].others)
        for changed, *_ in made:
            assert tiny.count(changed.model)["parameters"] <= targets.target(view.shape, share), name


def test_a_size_out_of_reach_is_left_out():
    shape = tiny.view(tiny.model("gpt2")).shape
    assert not curve.fits("svd", 0.01, shape, LONGEST) and curve.fits("svd", 0.9, shape, LONGEST)


@pytest.mark.parametrize("said", ["", "0.5,a", "1.0", "0", "80%", "0.8,0.9,0.80"])
def test_sizes_are_shares(said):
    with pytest.raises(
        UserError, match=f"SIZES = {said}: different shares of the original's parameters, each between 0"
    ):
        command._shares("SIZES", said)
    assert command._shares("SIZES", "0.8,0.9") == [0.9, 0.8]


@pytest.mark.parametrize("said", ["", "a", "0,0", "-1", "0.5", "4294967296"])
def test_seeds_are_different_whole_numbers(said):
    with pytest.raises(UserError, match=f"SEEDS = {said}: different whole numbers from 0 to 4294967295 are"):
        command._seeds(said)
    assert command._seeds("2,0") == [2, 0]


def test_seeds_are_of_recoveries(tmp_path):
    with pytest.raises(UserError, match="SEEDS = 0,1: they are of recoveries; TRAIN says which sizes are recovered"):
        command.main("0.9", "no", "0,1", tmp_path)


def test_a_size_to_train_is_one_of_the_sizes(tmp_path):
    with pytest.raises(UserError, match=r"TRAIN = 0.7: 0.7 is none of SIZES = 0.9,0.8"):
        command.main("0.9,0.8", "0.7", "0", tmp_path)


def test_every_method_has_a_colour_that_tells_it_from_others_of_its_speed():
    looks = [(curve.METHODS[name].speed, colour) for name, colour in curve_picture.COLOURED.items()]
    alike = {("dropped", "dropped_searched"), ("pruned", "pruned_input")}  # their markers differ
    assert curve_picture.COLOURED.keys() == curve.METHODS.keys() and len(set(looks)) == len(looks) - len(alike)


def test_labels_keep_their_order_and_lie_apart():
    found = curve_picture._apart({"b": 1.0, "a": 1.01, "c": 5.0}, 1.2)
    assert found == {"b": 1.0, "a": 1.2, "c": 5.0}


def test_a_method_may_be_the_best_of_each_set_of_its_own_forms_fitted_again_or_not():
    def tried(forms, by, perplexity):
        return mixing.Tried(forms, by, perplexity, {})

    found = [
        tried(["low_rank", "sparse", "share"], "divergence", 1.0),
        tried(["low_rank", "drop"], "divergence", 1.1),
        tried(["low_rank"], "error", 1.2),
        tried(["drop", "low_rank"], "refit", 1.25),
        tried(["share"], "divergence", 1.3),
        tried(["share"], "baseline", 1.4),
        tried(["drop"], "baseline", 1.5),
        tried(["drop"], "baseline", 1.6),
    ]
    names = [name for name in curve.METHODS if curve.in_mixture(name)]
    assert {name: [one.perplexity for one in curve.kinds(found, name)] for name in names} == {
        "mix": [1.0, 1.1, 1.2, 1.25, 1.3, 1.5], "mix_ordinary": [1.1, 1.2, 1.25, 1.3, 1.5], "mix_low_rank": [1.2],
        "softshare": [1.4], "dropped_searched": [1.5],
    }  # fmt: skip


class Recovering(points.Measuring):
    """Models are numbers: their perplexities. A recovery takes what `gains` say off at rate 1, at others half of it."""

    def __init__(self, gains):
        self.gains, self.ended = gains, []

    def start(self, name, share, kind):
        return points.Start(curve.Made(kind.perplexity, None, None), "+".join(kind.forms), kind.perplexity)

    def row(self, name, start):
        return {"method": name, "validation": start.validation, "test": start.validation}

    def end(self, start, recipe, seed):
        self.ended.append((start.forms, recipe.rate, seed))
        left = start.made.view - max(0, self.gains[start.forms]) * (1.0 if recipe.rate == 1.0 else 0.5)
        return points.End(left, left + seed, self.gains[start.forms] > 0)


def test_a_row_has_the_margin_of_its_test_perplexity_beside_the_original_s():
    measuring, view = Recovering({}), tiny.view(tiny.model("gpt2"))
    losses = np.random.default_rng(0).gamma(2.0, size=(2, 50))
    measuring.study, measuring.block = SimpleNamespace(view=view), 8
    measuring.losses = lambda model: losses[0 if model is view else 1]
    other = tiny.view(tiny.model("gpt2"))
    found = points.Measuring.row(measuring, "svd", points.Start(curve.Made(other, None, None), "", 2.0))
    assert found["margin"] == paired.margin(losses[1], losses[0], np.arange(50) // 8) > 0
    assert found["test"] == pytest.approx(np.exp(losses[1].mean())) and found["share"] == 1.0
    own = points.Measuring.row(measuring, "original", points.Start(curve.Made(view, None, None), "", 2.0))
    assert own["margin"] == 0
    measuring.block = 50
    assert points.Measuring.row(measuring, "svd", points.Start(curve.Made(other, None, None), "", 2.0))["margin"] == ""


def test_a_mixture_is_recovered_as_what_ends_best():
    kinds = [mixing.Tried([form], "divergence", at, {}) for form, at in (("low_rank", 2.0), ("share", 3), ("drop", 5))]
    measuring = Recovering({"low_rank": 0.5, "share": 0.5, "drop": 4.0})
    row = measuring.point("mix_ordinary", 0.8, [0, 2], kinds)
    assert (row["forms"], row["validation"]) == ("low_rank", 2.0)
    assert (row["forms_after"], row["validation_after"], row["rate"], row["seeds"]) == ("drop", 1.0, 1.0, 2)
    assert row["test_after"] == 2.0 and row["spread_after"] == pytest.approx(2**0.5)
    # Once each of what is not the first, then all rates of the first and of the best of these, then the other seed.
    full = [(forms, rate, 0) for forms in ("low_rank", "drop") for rate in points.RATES]
    assert measuring.ended == [("share", 1.0, 0), ("drop", 1.0, 0), *full, ("drop", 1.0, 2)]
    # What starts best is kept where no other ends better.
    row = Recovering({"low_rank": 0.5, "share": 0.5, "drop": 0.5}).point("mix_ordinary", 0.8, [0], kinds)
    assert (row["forms_after"], row["validation_after"]) == ("low_rank", 1.5)
    # Where no rate helps, the start stays, and the rate is none.
    row = Recovering({"low_rank": -0.5, "share": -2.0, "drop": -0.5}).point("mix_ordinary", 0.8, [0], kinds)
    assert row["rate"] == 0.0
    # A method that is but one thing has nothing to choose.
    measuring = Recovering({"share": 0.5})
    measuring.point("softshare", 0.8, [0], kinds[1:2])
    assert measuring.ended == [("share", rate, 0) for rate in points.RATES]


def test_hidden_states_are_tried_in_any_case_and_where_layers_are_gone_also_without():
    spec = curve.METHODS["mix_ordinary"].variant(0.8).finetune
    for kept, weights in ((None, {points.HIDDEN}), ([0, 2], {0.0, points.HIDDEN})):
        found = points.arms(spec, points.Start(curve.Made(None, None, kept), "", 2.0))
        assert {(one.rate, one.distill.hidden) for one in found} == {
            (rate, hidden) for rate in points.RATES for hidden in weights
        }


def test_a_size_that_no_method_reaches_is_an_error_that_says_what_is_allowed():
    shape = tiny.view(tiny.model("gpt2")).shape
    with pytest.raises(
        UserError, match=r"SIZES = 0.01: no method can store so little of .*; 0\.\d+ to 0.99 are allowed"
    ):
        command._plans([0.9, 0.01], shape, LONGEST)
    assert command._plans([0.9], shape, LONGEST) == curve.plans([0.9], shape, LONGEST)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(end, tmp_path):
    code = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from stages.core.process.guard import end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(60)
"""
    path = tmp_path / "parent.py"
    path.write_text(code)
    with subprocess.Popen([sys.executable, path], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=-1) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(end)
        worker.wait(20)


def test_ctrl_c_while_processes_still_start_is_no_traceback(tmp_path):
    code = """
import os, time
from stages.commands import curve
from stages.core.process import command

def main():
    with curve._calls(2) as (submit, ended):
        list(ended([submit("probe"), submit("probe")]))

if __name__ == "__main__":
    command.entry(main)
elif __name__ == "__mp_main__":  # in a process of the pool
    print(os.getpid(), flush=True)
    time.sleep(60)
"""
    path = tmp_path / "parent.py"
    path.write_text(code)
    with subprocess.Popen(
        [sys.executable, path], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=-1, stderr=-1
    ) as parent:  # fmt: skip
        for worker in [int(parent.stdout.readline()) for _ in range(2)]:
            os.kill(worker, signal.SIGINT)  # as a terminal does, to all of them
        time.sleep(0.5)
        parent.send_signal(signal.SIGINT)
        assert parent.communicate(timeout=40) == ("", "interrupted\n") and parent.returncode == 130


class Faked:
    """Stands for `points.Measuring`, and writes down what it is asked for."""

    def __init__(self):
        self.asked = []

    def originals(self, seeds):
        self.asked.append(("originals", seeds))
        return [{"method": "original"}]

    def probe(self):
        self.asked.append("probe")
        return "probed"

    def survey(self, smallest):
        self.asked.append(("survey", smallest))
        return "surveyed"

    def tried(self, share, probed, surveyed):
        self.asked.append(("tried", share, probed, surveyed))
        return [mixing.Tried([form], "baseline", share, {}) for form in ("low_rank", "share", "drop")]

    def point(self, name, share, seeds, kinds=()):
        return {"method": name, "size": share, "seeds": seeds, "kinds": [kind.forms for kind in kinds]}


class Remembered:
    """Stands for `kept.Kept`, in memory."""

    def __init__(self):
        self.known = {}

    def find(self, *asked):
        return self.known.get(str(asked))

    def keep(self, found, *asked):
        assert str(asked) not in self.known
        self.known[str(asked)] = found


@pytest.mark.parametrize("workers", [1, 2])
def test_what_mixtures_need_is_found_once_and_a_search_serves_all_of_a_size(workers, monkeypatch):
    fake = Faked()
    monkeypatch.setattr(command, "_own", lambda: fake)
    monkeypatch.setattr(command, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(workers))
    plans = [(name, share) for share in (0.9, 0.6) for name in curve.METHODS]
    rows = command._measured(plans, {0.9: [0], 0.6: None}, [0], workers, Remembered())
    original, *rows = sorted(rows, key=lambda row: "size" in row)
    assert original == {"method": "original"}
    assert sorted((row["method"], row["size"]) for row in rows) == sorted(plans)
    assert all(row["seeds"] == ([0] if row["size"] == 0.9 else None) for row in rows)
    every = [["low_rank"], ["share"], ["drop"]]
    known = {"mix": every, "mix_ordinary": every, "mix_low_rank": every[:1]}
    known |= {"softshare": every[1:2], "dropped_searched": every[2:]}
    assert all(row["kinds"] == known.get(row["method"], []) for row in rows)
    assert sorted(map(str, fake.asked)) == sorted(
        map(
            str,
            [
                "probe",
                ("originals", [0]),
                ("survey", 0.6),
                *(("tried", share, "probed", "surveyed") for share in (0.9, 0.6)),
            ],
        )
    )


class Stopped(Faked):
    """Stops as Ctrl-C does, when it was asked `calls` times."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name in ("originals", "probe", "survey", "tried", "point"):
            if self.calls == 0:
                raise KeyboardInterrupt
            self.calls -= 1
        return found


def test_a_run_that_was_stopped_goes_on_from_what_it_has_found(monkeypatch):
    plans = [(name, share) for share in (0.9, 0.6) for name in curve.METHODS]
    kept, rows, runs = Remembered(), [], 0
    while len(kept.known) < 1 + 2 + 2 + len(plans):  # the original, probes and survey, searches, methods
        fake = Stopped(3)
        monkeypatch.setattr(command, "_own", lambda: fake)
        with suppress(KeyboardInterrupt):
            rows = list(command._measured(plans, {0.9: [0], 0.6: None}, [0], 1, kept))
        runs += 1  # each finds three more: `Remembered` takes nothing twice
    assert runs == math.ceil(len(kept.known) / 3)
    monkeypatch.setattr(command, "_own", lambda: Stopped(0))
    rows = list(command._measured(plans, {0.9: [0], 0.6: None}, [0], 1, kept))
    assert sorted((row["method"], row.get("size", 1)) for row in rows) == sorted([("original", 1), *plans])
    # At another size nothing is found anew that serves it, too.
    fake = Faked()
    monkeypatch.setattr(command, "_own", lambda: fake)
    kept.known |= {"('survey', 0.8)": kept.known["('survey', 0.6)"]}
    list(command._measured([("mix", 0.8)], {0.8: None}, [0], 1, kept))
    assert fake.asked == [("tried", 0.8, "probed", "surveyed")]


def test_what_is_kept_is_the_same_to_the_last_bit(tmp_path):
    model, kept = tiny.model("llama"), kept_on_disk.Kept(tmp_path)
    view, known = tiny.view(model), tiny.calibration(model)

    def score(changed):
        return 2.0 + float(sum(p.detach().double().abs().sum() for p in changed.model.parameters())) / 1000

    judge = Judge(score, lambda view: None, lambda view, reference: 1 / 3)
    probed, surveyed = curve.probe(view, known, judge), curve.survey(view, known, judge, 0.7, LONGEST)
    kept.keep(probed, "probe")
    kept.keep(surveyed, "survey", 0.7)
    assert kept.find("probe") == probed
    again = kept.find("survey", 0.8)  # that down to 0.7 serves
    assert kept.find("survey", 0.6) is None
    assert (again.windows, again.orders, again.fewer) == (surveyed.windows, surveyed.orders, surveyed.fewer)
    assert surveyed.gains and again.gains.keys() == surveyed.gains.keys()
    for window, every in surveyed.gains.items():
        assert all(torch.equal(again.gains[window][matrix], values) for matrix, values in every.items())
    found = curve.tried(0.9, view, known, judge, probed, surveyed, LONGEST)
    kept.keep(found, "tried", 0.9)
    assert kept.find("tried", 0.9) == found and kept.find("tried", 0.8) is None
    # And what is found with it is what is found without it.
    assert curve.tried(0.9, view, known, judge, kept.find("probe"), again, LONGEST) == found
    row = {"method": "svd", "size": 0.9, "test": 0.1 + 0.2, "margin": ""}
    kept.keep(row, "point", "svd", 0.9, [0, 1])
    assert kept.find("point", "svd", 0.9, [0, 1]) == row
    assert kept.find("point", "svd", 0.9, None) is None is kept.find("point", "svd", 0.9, [0])
    whole = {path: path.read_text() for path in tmp_path.iterdir()}
    for damage in (lambda text: text[:-9], lambda _: "{}", lambda _: "[]"):
        for path, text in whole.items():
            path.write_text(damage(text))
        assert kept.find("probe") is None is kept.find("survey", 0.7)
        assert kept.find("point", "svd", 0.9, [0, 1]) is None


def test_what_was_found_with_other_params_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.setattr(kept_on_disk.params, "PARAMS", tmp_path / "params.yaml")
    control, usual = tmp_path / "control", kept_on_disk.params.section
    first = kept_on_disk.Kept.here("small", control)
    first.keep(1, "point", "svd")
    changed = usual("small", "search").model_copy(update={"max_tokens": 512})
    monkeypatch.setattr(
        kept_on_disk.params, "section", lambda profile, name: changed if name == "search" else usual(profile, name)
    )
    other = kept_on_disk.Kept.here("small", control)
    assert other.find("point", "svd") is None and first.find("point", "svd") == 1
    control.write_text("trained")
    assert kept_on_disk.Kept.here("small", control).folder not in (first.folder, other.folder)


class Failing(Faked):
    """Cannot measure the original, and waits long for all else but one method."""

    def originals(self, seeds):
        time.sleep(0.2)
        raise UserError("no control")

    def point(self, name, share, seeds, kinds=()):
        time.sleep(0 if name == "svd" else 60)
        return super().point(name, share, seeds, kinds)


def _fail(what, *asked):
    return getattr(Failing(), what)(*asked)


def _die(what, *asked):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("do", "said"), [(_fail, "^no control$"), (_die, "^a process that measured was ended from")])
def test_what_goes_wrong_in_a_process_ends_the_others_at_once(do, said, monkeypatch):
    monkeypatch.setattr(command, "_do", do)
    plans = [(name, 0.9) for name in ("svd", "svd_weighted", "pruned", "dropped")]
    with pytest.raises(UserError, match=said):
        list(command._measured(plans, {0.9: None}, None, 2, Remembered()))
    # The system's own list: the pool's thread may have reaped a worker behind the back of `multiprocessing`.
    workers = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended
            workers += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    assert not psutil.wait_procs(workers, timeout=20)[1]


@pytest.mark.parametrize("free, trained, workers", [(1e12, False, 8), (9e8, False, 2), (9e8, True, 1), (1, False, 1)])
def test_processes_are_as_many_as_cores_and_memory_allow(free, trained, workers, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    costs = {"search": SimpleNamespace(memory=4e8), "finetune": SimpleNamespace(memory=6e8)}
    monkeypatch.setattr(command.estimates, "estimate", lambda *_: costs)
    shape = tiny.view(tiny.model("gpt2")).shape
    assert command._workers("small", shape, trained) == workers


class Measured(Faked):
    """Its rows have all that the table and the picture show."""

    def probe(self):
        return Probed(2.0, {}, {})

    def survey(self, smallest):
        return Surveyed([], [], [], {})

    def originals(self, seeds):
        return [{"method": "original", "stored": 100, "share": 1.0, "validation": 2.0, "test": 2.0, "speed": "any"}]

    def point(self, name, share, seeds, kinds=()):
        row = {"method": name, "size": share, "speed": curve.METHODS[name].speed}
        return row | {"stored": 100 * share, "share": share, "validation": 3.0, "test": 3 - share}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_table_and_the_picture_have_every_method_at_every_size(workers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.opened, "checked", lambda _: "small")
    monkeypatch.setattr(command.opened, "identity", lambda profile: {"profile": profile})
    monkeypatch.setattr(command, "of_folder", lambda _: tiny.view(tiny.model("gpt2")).shape)
    monkeypatch.setattr(command, "longest_window", lambda *_: LONGEST)
    monkeypatch.setattr(command, "_workers", lambda *_: workers)
    monkeypatch.setattr(command.Kept, "here", lambda *_: kept_on_disk.Kept(tmp_path / "kept"))
    monkeypatch.setattr(command, "_own", Measured)
    monkeypatch.setattr(command, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(workers))
    command.main("0.9,0.8", "no", "0", tmp_path)
    rows = pd.read_csv(tmp_path / "curve.csv")
    plans = curve.plans([0.9, 0.8], tiny.view(tiny.model("gpt2")).shape, LONGEST)
    assert [*zip(rows["method"][1:], rows["size"][1:])] == plans and rows["method"][0] == "original"
    assert rows["excess"][1:].between(0, 0.2).all() and rows["excess"][0] == 0
    assert json.loads((tmp_path / "curve.json").read_text())["study"] == {"profile": "small"}
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG") and "softshare" in capsys.readouterr().out
