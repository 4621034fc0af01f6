"""What a person sees while a sweep runs: a live view on a terminal, else an occasional line; standard error only."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.store import Store

_LINE_S = 30.0  # between two lines where nothing can be redrawn
_SILENCE_S = 120.0  # after which a line comes even if no stage has ended
_BEAT_S = 1.0
_SHOWN = 4  # stages at work, and last results


class _Console(Console):
    """Standard error, whose reader may leave; a sweep does not end for that."""

    def on_broken_pipe(self) -> None:
        """Say no more."""
        self.quiet = True


class Progress:
    """A listener of the driver; use it as a context manager.

    Args:
        plan: the sweep.
        out: its folder, from whose store the last results are read.
        quiet: never redraw, even on a terminal (somebody parses our output).
        stream: where to write; standard error unless told otherwise.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        *,
        quiet: bool = False,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan, self.clock = plan, clock
        self.store = Store(out / "store")
        self.console = _Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.missing = plan.missing(plan.done(self.store))
        self.ended: Counter[str] = Counter()
        self.running: dict[str, float] = {}  # since when
        self.results: deque[str] = deque(maxlen=_SHOWN)
        self._measured_s = self._estimated_s = 0.0
        self._most_workers = 1
        self._begun = self._line_at = clock()
        self._live: Live | None = None
        if self.console.is_terminal and not quiet:
            self._live = Live(console=self.console, get_renderable=self._view, transient=True, refresh_per_second=4)
        self._over = threading.Event()
        # A thread of its own: an executor may be busy with a stage for hours.
        self._heart = threading.Thread(target=self._beat, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        elif self.missing:
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._live is not None:
            self._live.stop()
        if self._heart.is_alive():
            self._heart.join()
        if self.missing:
            self._say(self.line())

    # --- the driver's listener -------------------------------------------------------------------------------------

    def on_start(self, stage: Stage) -> None:
        """Note since when a stage is at work."""
        self.running[stage.key] = self.clock()
        self._most_workers = max(self._most_workers, len(self.running))

    def on_done(self, stage: Stage, status: str) -> None:
        """Count a stage, learn from its duration, remember its figures; say at once if it failed."""
        self.ended[status] += 1
        self.missing.discard(stage.key)
        begun = self.running.pop(stage.key, None)
        if status == "executed":
            if begun is not None:
                self._measured_s += self.clock() - begun
                self._estimated_s += stage.seconds
            self._remember(stage)
        elif status == "failed":
            failure = self.store.failure(stage.key) or {}
            self._say(f"failed: {stage.label}: {failure.get('reason', 'no reason noted')}")
        if self._live is None:
            self._say_line(_LINE_S)

    def on_note(self, text: str) -> None:
        """Print a line."""
        self._say(text)

    # --- figures ---------------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Stages that this run has to do."""
        return len(self.missing) + self.ended.total()

    def remaining_s(self) -> float | None:
        """Return estimated seconds to the end: the critical path or the work per worker, whichever is longer.

        Estimates are scaled by what the finished stages took; None before there is any.
        """
        if self._estimated_s == 0.0:
            return None
        open_stages = [self.plan.stages[key] for key in list(self.missing)]  # a copy: the view has its own thread
        longest = max((self.plan.critical[stage.key] for stage in open_stages), default=0.0)
        shared = sum(stage.seconds for stage in open_stages) / self._most_workers
        return max(longest, shared) * self._measured_s / self._estimated_s

    def line(self) -> str:
        """Return the state of the sweep in one line."""
        done = self.total - len(self.missing)
        parts = [f"{done}/{self.total} stages", f"{len(self.running)} running"]
        parts += [f"{self.ended[state]} {state}" for state in ("failed", "blocked") if self.ended[state]]
        parts.append(f"{_duration(self.clock() - self._begun)} elapsed")
        remaining = self.remaining_s()
        if remaining is not None and self.missing:
            parts.append(f"about {_duration(remaining)} left")
        return " | ".join(parts)

    def _say_line(self, after_s: float) -> None:
        """Print the state, unless a line was printed less than that many seconds ago."""
        if self.clock() - self._line_at >= after_s:
            self._line_at = self.clock()
            self._say(self.line())

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            self._say_line(_SILENCE_S)

    def _remember(self, stage: Stage) -> None:
        try:
            result = self.store.record(stage.key).get("result", {})
        except KeyError:
            return
        figures = []
        if result.get("main") is not None:
            figures.append(f"main {result['main']:.3f}")
        if (result.get("verdict") or {}).get("score") is not None:
            figures.append(f"score {result['verdict']['score']:.3f}")
        if figures:
            self.results.append(f"{stage.label}: {', '.join(figures)}")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk behind standard error, which Python reports at its end
            self.console.print(Text(text))

    def _view(self) -> RenderableType:
        # Drawn by another thread: copies, because the driver goes on.
        done = self.total - len(self.missing)
        head = Table.grid(padding=(0, 1))
        head.add_row(ProgressBar(total=max(self.total, 1), completed=done, width=30), Text(self.line()))
        lines: list[RenderableType] = [head]
        for key, since in list(self.running.items())[:_SHOWN]:
            seconds = _duration(self.clock() - since)
            lines.append(
                Text(f"  {seconds:>7}  {self.plan.stages[key].label}", "cyan", no_wrap=True, overflow="ellipsis")
            )
        lines += [Text(f"  {text}", "dim", no_wrap=True, overflow="ellipsis") for text in list(self.results)]
        return Group(*lines)


def _duration(seconds: float) -> str:
    """As a person says it: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
