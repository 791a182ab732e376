"""How a run looks: lines of text from its state, and a terminal or a plain stream that shows them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.core.process.progress import report_of
from stages.core.running.board import Board, Left, Work

BAR = 12  # cells
WIDE = 70  # columns from which there is room for a bar


def lines(board: Board, reports: Callable[[Work], dict[str, Any] | None], width: int) -> list[str]:
    """The whole screen: one line for the run, then one for each call of DVC, none wider than `width`."""
    work = board.at_work()
    names = max((len(each.stage or each.name) for each in work), default=0)
    below = [line_of(each, reports(each), board.clock(), min(names, width // 2), width) for each in work]
    return [overall(board, width), *below]


def overall(board: Board, width: int) -> str:
    """Stages done of all, time spent, time left as far as it is known."""
    done, total = board.counts()
    parts = [f"{done} of {total} stages", f"{duration(board.clock() - board.began)} elapsed", left(board.left())]
    bar = [drawn(done, total)] if width >= WIDE else []
    return cut("  ".join(filter(None, bar + parts)), width)


def left(estimate: Left | None) -> str:
    """The time left in words; nothing where nobody knows."""
    return f"{'over' if estimate.more else 'about'} {duration(estimate.seconds)} left" if estimate else ""


def line_of(work: Work, report: dict[str, Any] | None, now: float, names: int, width: int) -> str:
    """What one call does: stage, how far it is, its time, the loss or what else it says."""
    spent = duration(now - work.since)
    if work.stage is None:
        return cut(f"  {work.name:<{names}}  {spent:>7}  DVC checks what is next", width)
    parts = [f"  {cut(work.stage, names):<{names}}  {spent:>7}"]
    if report:
        done, total = report["done"], report["total"]
        if total:
            parts += [drawn(done, total)] if width >= WIDE else []
            parts.append(f"{done}/{total}")
        elif done:
            parts.append(str(done))
        # The bar's name repeats the stage's: only what it says beyond that is news here.
        detail = report["what"].removeprefix(work.stage.replace("@", " ")).lstrip(" ,")
        parts += [report["note"], detail]
    return cut("  ".join(filter(None, parts)), width)


def drawn(done: int, total: int) -> str:
    """A bar of fixed width."""
    full = min(BAR, BAR * done // total) if total else 0
    return "━" * full + "─" * (BAR - full)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def finished(board: Board, stage: str, how: str) -> str:
    """The plain line of a stage that has ended: how many are done, its name, its time."""
    done, total = board.counts()
    return f"[{done:>{len(str(total))}}/{total}] {stage}  {how}"


def summary(board: Board) -> str:
    """One line on a whole run."""
    done, total = board.counts()
    ran, restored = len(board.ran), len(board.restored)
    parts = [f"{ran} run"] + ([f"{restored} from the run cache"] if restored else [])
    if others := done - ran - restored:
        parts.append(f"{others} up to date")
    return f"{done} of {total} stages done in {duration(board.clock() - board.began)}: {', '.join(parts)}"


class Plain:
    """One line for every stage that ends, for a file or a pipe."""

    def __init__(self, board: Board):
        self.board = board

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def stage(self, stage: str, how: str) -> None:
        """A stage has ended."""
        self.say(finished(self.board, stage, how))

    def say(self, text: str) -> None:
        """Text that stays."""
        print(text, flush=True)


class Live:
    """Lines that are drawn anew four times a second, below whatever stays."""

    def __init__(self, board: Board, folder: Path):
        from rich.console import Console
        from rich.live import Live as Drawn

        self.board, self.folder, self.console = board, folder, Console(highlight=False, markup=False, soft_wrap=True)
        self.drawn = Drawn(get_renderable=self._text, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Live":
        self.drawn.__enter__()
        return self

    def __exit__(self, *found: Any) -> None:
        self.drawn.__exit__(*found)

    def stage(self, stage: str, how: str) -> None:
        """A stage has ended: the counts say so."""

    def say(self, text: str) -> None:
        """Text that stays, above the lines."""
        self.console.print(text)

    def _text(self) -> Any:
        from rich.text import Text

        # A terminal may wrap a line that fills it to the last column.
        shown = lines(self.board, self._report, max(10, self.console.width - 1))
        return Text("\n".join(shown), no_wrap=True, overflow="ellipsis")

    def _report(self, work: Work) -> dict[str, Any] | None:
        return report_of(report_file(self.folder, work.name), work.stage) if work.stage else None


def report_file(folder: Path, call: str) -> Path:
    """Where the stages of a call of DVC report their progress."""
    return folder / f"{call}.json"


def chosen(board: Board, folder: Path) -> Plain | Live:
    """The screen for this process's standard output."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return Live(board, folder) if terminal else Plain(board)
