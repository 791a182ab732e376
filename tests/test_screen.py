"""What the screen says of a run's state, in any width, and what it does not know."""

import json
import re

import pytest
from closure import ROOT

from stages.core.process.progress import REPORT, progress, report_of
from stages.core.running import screen
from stages.core.running.board import Board, Left
from stages.core.running.graph import Plan, plan


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


VARIANTS = ["one", "two", "three"]
PLAN = Plan(
    ["base"], {name: [f"search@{name}", f"finetune@{name}"] for name in VARIANTS},
    [*(f"latency@{name}" for name in VARIANTS), "report"],
)  # fmt: skip


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board(clock):
    return Board(PLAN, PLAN.stages(), jobs=2, clock=clock)


def run(board, clock, stage, seconds, call="call"):
    board.begin(call, stage)
    clock.now += seconds
    assert board.end(call) == seconds


def nothing(work):
    return None


def test_the_whole_screen_of_two_chains(board, clock):
    board.open("call")
    run(board, clock, "base", 5)
    board.close("call")
    for name in ("one", "two"):
        board.open(name)
        board.begin(name, f"finetune@{name}")
    clock.now += 70
    report = {"stage": "finetune@two", "what": "finetune two, seed 0", "done": 30, "total": 60, "note": "loss 2.134"}
    assert screen.lines(board, lambda work: report if work.name == "two" else None, 80) == [
        "━───────────  1 of 11 stages  1:15 elapsed",
        "  finetune@one     1:10",
        "  finetune@two     1:10  ━━━━━━──────  30/60  loss 2.134  seed 0",
    ]
    board.end("one")
    assert screen.lines(board, nothing, 80)[1].split("  ")[-1] == "DVC checks what is next"


@pytest.mark.parametrize("width", range(1, 130))
def test_no_line_is_wider_than_the_terminal(width, board, clock):
    for name in VARIANTS:
        board.open(name)
        run(board, clock, f"search@{name}", 5, name)
        board.begin(name, f"finetune@{name}")
    clock.now += 100_000
    report = {"what": "a long story " * 9, "done": 12345, "total": 99999, "note": "loss 1.234"}
    shown = screen.lines(board, lambda work: report, width)
    assert len(shown) == 4 and all(0 < len(line) <= width and "\n" not in line for line in shown)
    if width >= 40:  # what matters most comes first
        assert shown[0].startswith("3 of 11 stages") or "3 of 11 stages" in shown[0]
        assert "finetune@one" in shown[1] and "12345/99999" in shown[1]


def test_time_left_is_not_said_before_it_is_known(board, clock):
    board.open("call")
    assert board.left() is None
    run(board, clock, "base", 5)
    run(board, clock, "search@one", 10)
    run(board, clock, "finetune@one", 1)  # an exception: it copies what is there
    assert board.left() is None  # one time of a kind is no rule
    run(board, clock, "search@two", 10)
    run(board, clock, "finetune@two", 61)
    # One chain is left, of 10 and 61 seconds, which two jobs do not share; nobody knows latencies yet.
    assert board.left() == Left(71.0, more=True)
    assert screen.left(board.left()) == "over 1:11 left"
    board.begin("call", "search@three")
    clock.now += 4
    assert board.left() == Left(67.0, more=True)
    clock.now += 400  # longer than ever: nothing is owed
    assert board.left() == Left(61.0, more=True)
    board.end("call")
    run(board, clock, "finetune@three", 61)
    assert board.left() is None and "left" not in screen.overall(board, 80)  # nothing but unknown things
    run(board, clock, "latency@one", 3)
    assert board.left() == Left(6.0, more=True)
    run(board, clock, "latency@two", 3)
    run(board, clock, "latency@three", 3)
    run(board, clock, "report", 3)
    assert board.left() == Left(0.0, more=False) and board.counts() == (11, 11)
    assert screen.summary(board).startswith("11 of 11 stages done in ") and "11 run" in screen.summary(board)


def test_chains_share_the_jobs_and_dvc_takes_its_time(clock):
    chains = {str(number): [f"search@{number}"] for number in range(10)}
    board = Board(Plan([], chains, []), Plan([], chains, []).stages(), jobs=2, clock=clock)
    board.open("call")
    for number in range(2):
        clock.now += 2
        run(board, clock, f"search@{number}", 10)
    assert board.left() == Left(8 * 12 / 2, more=False)


def test_what_is_up_to_date_is_done_at_once_and_makes_no_estimate(clock):
    board = Board(PLAN, ["finetune@two", "latency@two", "report"], clock=clock)
    assert board.counts() == (8, 11) and board.left() is None
    board.skip("finetune@two", restored=True)
    board.skip("latency@two")
    board.skip("never heard of")
    assert board.counts() == (10, 11) and board.left() is None
    assert screen.summary(board) == "10 of 11 stages done in 0:00: 0 run, 1 from the run cache, 9 up to date"


def test_times_read_well():
    assert [screen.duration(seconds) for seconds in (0, 59.6, 61, 3599, 3600, 36_061)] == [
        "0:00", "1:00", "1:01", "59:59", "1:00:00", "10:01:01",
    ]  # fmt: skip


def test_the_plain_line_of_a_stage_has_its_time(board, clock, capsys):
    board.open("call")
    run(board, clock, "base", 5)
    with screen.Plain(board) as plain:
        plain.stage("base", "5.0 s")
    assert capsys.readouterr().out == "[ 1/11] base  5.0 s\n"


def test_a_stage_reports_its_progress_where_the_driver_asks_for_it(tmp_path, monkeypatch, capfd):
    path = tmp_path / "call.json"
    monkeypatch.setenv(REPORT, str(path))
    monkeypatch.setenv("DVC_STAGE", "finetune@one")
    shown = progress(["a", "b"], "finetune one, seed 1", unit="file")
    seen = []
    for item in shown:
        seen.append((item, report_of(path, "finetune@one")["done"]))
        shown.set_postfix_str("loss 0.5", refresh=False)
    assert seen[0] == ("a", 0)
    end = {"stage": "finetune@one", "what": "finetune one, seed 1", "done": 2, "total": 2, "note": "loss 0.5"}
    assert json.loads(path.read_text()) == end and [found.name for found in tmp_path.iterdir()] == ["call.json"]
    assert report_of(path, "search@one") is None  # of the stage before
    assert capfd.readouterr() == ("", "")
    path.write_text('{"stage": ')
    assert report_of(path, "finetune@one") is None
    list(progress(iter("abc"), "letters", total=3))
    assert report_of(path, "finetune@one")["total"] == 3
    # A driver that is gone ends no stage, nor does a length that nobody knows.
    monkeypatch.setenv(REPORT, str(tmp_path / "gone" / "call.json"))
    assert list(progress(iter("ab"), "letters")) == ["a", "b"]


def test_without_a_terminal_or_a_driver_no_bar_fills_the_log(monkeypatch, capfd):
    monkeypatch.delenv(REPORT, raising=False)
    shown = progress(range(3), "counting")
    assert list(shown) == [0, 1, 2]
    shown.set_postfix_str("loss 0.5", refresh=False)
    assert capfd.readouterr() == ("", "")


def test_the_counted_stages_are_those_of_dvc():
    """Every stage but the frozen one, as DVC names them."""
    from dvc.repo import Repo
    from ruamel.yaml import YAML

    variants = YAML(typ="safe").load(ROOT / "params.yaml")["variants"]
    names = {stage.addressing for stage in Repo(ROOT).index.stages if not stage.frozen}
    assert set(plan(ROOT / "dvc.yaml", variants).stages()) == names


def test_the_libraries_draw_no_bars_of_their_own(tmp_path):
    """Neither 'Loading weights' nor 'Writing model shards', in a stage's process or a command's."""
    import os
    import subprocess
    import sys

    code = (
        "from stages.core.process import command\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9)).save_pretrained('model')\n"
        "GPT2LMHeadModel.from_pretrained('model')\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.endswith("DISABLE_PROGRESS_BARS")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**clean, "PYTHONPATH": str(ROOT)},
        text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0 and not re.search("Loading|Writing|%", done.stdout + done.stderr), done.stderr
