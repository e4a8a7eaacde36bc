"""What the terminal shows beside results: progress, warnings and errors, all on stderr.

Results go to stdout (``--json`` prints nothing else there), so a pipe sees results only.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

from optimizer.errors import ResnetOptError, UsageError
from optimizer.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Bars", "Lines", "console", "print_error", "print_note", "progress", "start_logging"]


@functools.cache
def console() -> Console:
    """The console on stderr; it looks up ``sys.stderr`` anew for every line."""
    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def progress(on: Console | None = None) -> Iterator[Progress]:
    """Progress for the length of a ``with`` block: bars in a terminal, else one line a step.

    Args:
        on: Where it is shown; stderr by default.
    """
    shown = on or console()
    live = shown.is_terminal and not shown.is_dumb_terminal
    with Bars(shown) if live else Lines(shown) as reporter:
        yield reporter


def start_logging(verbose: int, log_file: Path | None) -> None:
    """Let the package's log be seen: with ``-v`` on stderr, and with ``--log-file`` in a file.

    Args:
        verbose: 0 logs warnings alone to stderr, 1 what is done, 2 every detail.
        log_file: Appended to, with every detail; ``None`` for no file.

    Raises:
        UsageError: The file cannot be written.
    """
    log = logging.getLogger("optimizer")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.DEBUG)
    log.propagate = False
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handlers: list[tuple[logging.Handler, int]] = [(logging.StreamHandler(sys.stderr), level)]
    if log_file is not None:
        try:
            handlers.append((logging.FileHandler(log_file, encoding="utf-8"), logging.DEBUG))
        except OSError as error:
            raise UsageError(
                f"the log {log_file} cannot be written: {error.strerror}", hint="--log-file FILE"
            ) from error
    form = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for handler, least in handlers:
        handler.setLevel(least)
        handler.setFormatter(form)
        log.addHandler(handler)


def print_error(error: ResnetOptError, on: Console | None = None) -> None:
    """Print an error as one line, and what to do about it as another."""
    shown = on or console()
    _print_line(shown, "error", error.message, "bold red")
    if error.hint:
        _print_line(shown, "hint", error.hint, "bold")


def print_note(text: str, on: Console | None = None) -> None:
    """Print a remark that a user must see but that stops nothing."""
    _print_line(on or console(), "note", text, "bold yellow")


def _print_line(shown: Console, label: str, text: str, style: str) -> None:
    # Text, not markup: a file may be called "[red].onnx". Wrapping is left to the terminal, so
    # that a line in a log stays one line.
    line = Text.assemble((f"{label}: ", style), " ".join(text.split()))
    shown.print(line, soft_wrap=True)


# --- progress ----------------------------------------------------------------------------------


@dataclass
class _Step:
    """A piece of work that was begun and has not ended."""

    label: str
    started: float
    task: TaskID | None = None
    done: int = 0
    total: int | None = None


class _Steps:
    """What bars and lines have in common: work begun inside other work, and how it ended."""

    def __init__(self, shown: Console) -> None:
        self._console = shown
        self._open: list[_Step] = []
        self._log = logging.getLogger(__name__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End what was begun: after an exception as not finished."""
        while self._open:
            step = self._open.pop()
            if error is not None:
                reached = f"at {step.done} of {step.total}" if step.total else None
                self._say(step, "not finished after", reached)

    def _end(self, note: str | None) -> _Step:
        if not self._open:
            raise RuntimeError("finish() without start()")
        step = self._open.pop()
        self._say(step, "done in", note)
        return step

    def _last(self) -> _Step:
        if not self._open:
            raise RuntimeError("advance() without start()")
        return self._open[-1]

    def _say(self, step: _Step, how: str, note: str | None = None) -> None:
        line = Text("  " * len(self._open) + step.label)
        line.append(f" ... {how} {_duration(time.perf_counter() - step.started)}", "dim")
        if note:
            line.append(f": {' '.join(note.split())}")
        self._console.print(line, soft_wrap=True)
        self._log.info("%s", line.plain.strip())


HEARTBEAT_S = 30.0
"""How often long work says where it is in a log or a pipe."""


class Lines(_Steps):
    """One line for each piece of work when it ends, and now and then before: for logs and pipes."""

    def __init__(self, shown: Console, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(shown)
        self._clock = clock
        self._spoken = clock()

    def start(self, label: str, total: int | None = None) -> None:
        """See `optimizer.progress.Progress.start`."""
        self._open.append(_Step(label, time.perf_counter(), total=total))
        self._log.debug("begin: %s", label)

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """See `optimizer.progress.Progress.advance`; shows a line every half minute."""
        step = self._last()
        step.done += steps
        if self._clock() - self._spoken < HEARTBEAT_S:
            return
        self._spoken = self._clock()
        reached = f"{step.done} of {step.total}" if step.total else f"{step.done} done"
        line = Text("  " * (len(self._open) - 1) + step.label)
        line.append(f" ... {reached} after {_duration(time.perf_counter() - step.started)}", "dim")
        if note:
            line.append(f": {' '.join(note.split())}")
        self._console.print(line, soft_wrap=True)

    def finish(self, note: str | None = None) -> None:
        """See `optimizer.progress.Progress.finish`."""
        self._end(note)
        self._spoken = self._clock()


_REDRAW_S = 0.1


class Bars(_Steps):
    """Bars while work goes on; each becomes a line when its work ends."""

    def __init__(self, shown: Console) -> None:
        super().__init__(shown)
        self._bars = _rich_progress(shown)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bars away, so that nothing is drawn over what is printed next."""
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        self._bars.stop()
        super().__exit__(kind, error, traceback)

    def start(self, label: str, total: int | None = None) -> None:
        """See `optimizer.progress.Progress.start`."""
        indented = Text("  " * len(self._open) + label)
        task = self._bars.add_task("", total=total, label=indented, note=Text())
        self._open.append(_Step(label, time.perf_counter(), task, total=total))
        self._refresh(now=True)

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """See `optimizer.progress.Progress.advance`."""
        step = self._last()
        step.done += steps
        assert step.task is not None
        self._bars.advance(step.task, steps)
        if note is not None:
            self._bars.update(step.task, note=Text(note))
        self._refresh()

    def _refresh(self, *, now: bool = False) -> None:
        if now or time.perf_counter() - self._drawn > _REDRAW_S:
            self._bars.refresh()
            self._drawn = time.perf_counter()

    def finish(self, note: str | None = None) -> None:
        """See `optimizer.progress.Progress.finish`."""
        step = self._end(note)
        assert step.task is not None
        self._bars.remove_task(step.task)
        self._refresh(now=True)


def _rich_progress(shown: Console) -> RichProgress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    class Words(ProgressColumn):
        """A field of the task as plain text; rich's own text column would read markup in it."""

        def __init__(self, field: str) -> None:
            super().__init__()
            self._field = field

        def render(self, task: Task) -> Text:
            text: Text = task.fields[self._field]
            return text

    return RichProgress(
        Words("label"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        Words("note"),
        console=shown,
        transient=True,
        redirect_stdout=False,
        # No thread of its own: it would draw in the middle of a measurement.
        auto_refresh=False,
    )


def _duration(seconds: float) -> str:
    """``3.2 s``, ``4 min 12 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
