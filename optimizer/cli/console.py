"""Progress, notes and errors, all on stderr.

Results alone go to stdout, so that they can be piped.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
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
from optimizer.tables import visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = [
    "Bars", "Lines", "console", "print_error", "print_note", "progress", "say", "start_logging",
]  # fmt: skip


_LOG_LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_LOG_BEGINS = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +optimizer[.\w]*: ")
_LONGEST_BEGINNING = 200


@functools.cache
def console() -> Console:
    """The console on stderr; it looks up ``sys.stderr`` again for every line."""
    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def progress(on: Console | None = None) -> Iterator[Progress]:
    """Show progress during a ``with`` block: bars in a terminal, otherwise one line per step.

    Args:
        on: Where it is shown; stderr by default.
    """
    target = on or console()
    live = target.is_terminal and not target.is_dumb_terminal
    with Bars(target) if live else Lines(target) as reporter:
        yield reporter


def start_logging(verbose: int, log_file: Path | None) -> None:
    """Write the package's log to stderr and, with ``--log-file``, to a file.

    Args:
        verbose: Level on stderr: 0 warnings, 1 info, 2 debug.
        log_file: File to append to, at debug level; ``None`` for no file.

    Raises:
        UsageError: The file cannot be written, or is something other than a log.
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
        _check_log(log_file)
        try:
            handlers.append((logging.FileHandler(log_file, encoding="utf-8"), logging.DEBUG))
        except OSError as error:
            raise UsageError(
                f"cannot write the log {log_file}: {error.strerror}", hint="--log-file FILE"
            ) from error
    formatter = logging.Formatter(_LOG_LINE)
    for handler, minimum in handlers:
        handler.setLevel(minimum)
        handler.setFormatter(formatter)
        log.addHandler(handler)


def _check_log(path: Path) -> None:
    """Refuse to append to a file that is no log of this package, and to a device."""
    from optimizer.artifacts import OutputFile, check_outputs

    def is_log(existing: Path) -> bool:
        with existing.open("rb") as stream:
            return _LOG_BEGINS.match(stream.readline(_LONGEST_BEGINNING)) is not None

    check_outputs(
        [OutputFile(path, "log", has_manifest=False, option="--log-file", updated=is_log)]
    )


def say(text: object) -> None:
    """Print a line of a result, which may quote a file, to stdout."""
    sys.stdout.write(visible(str(text)) + "\n")


def print_error(error: ResnetOptError, on: Console | None = None) -> None:
    """Print an error as one line, and its hint as another."""
    target = on or console()
    _print_line(target, "error", error.message, "bold red")
    if error.hint:
        _print_line(target, "hint", error.hint, "bold")


def print_note(text: str, on: Console | None = None) -> None:
    """Print a note that is not an error."""
    _print_line(on or console(), "note", text, "bold yellow")


def _print_line(target: Console, label: str, text: str, style: str) -> None:
    # Text, not markup: a file may be called "[red].onnx". The terminal wraps lines; in a log each
    # stays one line.
    line = Text.assemble((f"{label}: ", style), visible(" ".join(text.split())))
    target.print(line, soft_wrap=True)


# --- progress ----------------------------------------------------------------------------------


@dataclass
class _Step:
    """A step in progress."""

    label: str
    started: float
    task: TaskID | None = None
    done: int = 0
    total: int | None = None


class _Steps:
    """Nested steps; common to `Bars` and `Lines`."""

    def __init__(self, target: Console) -> None:
        self._console = target
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
        """End open steps; after an exception report them as not finished."""
        while self._open:
            step = self._open.pop()
            if error is not None:
                reached = f"at {step.done} of {step.total}" if step.total else None
                self._print_end(step, "not finished after", reached)

    def _end(self, note: str | None) -> _Step:
        if not self._open:
            raise RuntimeError("finish() without start()")
        step = self._open.pop()
        self._print_end(step, "done in", note)
        return step

    def _last(self) -> _Step:
        if not self._open:
            raise RuntimeError("advance() without start()")
        return self._open[-1]

    def _print_end(self, step: _Step, outcome: str, note: str | None = None) -> None:
        line = Text("  " * len(self._open) + visible(step.label))
        line.append(f" ... {outcome} {_duration(time.perf_counter() - step.started)}", "dim")
        if note:
            line.append(f": {visible(' '.join(note.split()))}")
        self._console.print(line, soft_wrap=True)
        self._log.info("%s", line.plain.strip())


HEARTBEAT_S = 30.0
"""Interval of progress lines in a log or a pipe."""


class Lines(_Steps):
    """One line per step when it ends, and one every `HEARTBEAT_S` before: for logs and pipes."""

    def __init__(self, target: Console, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(target)
        self._clock = clock
        self._printed = clock()

    def start(self, label: str, total: int | None = None) -> None:
        """See `optimizer.progress.Progress.start`."""
        self._open.append(_Step(label, time.perf_counter(), total=total))
        self._log.debug("begin: %s", label)

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """See `optimizer.progress.Progress.advance`."""
        step = self._last()
        step.done += steps
        if self._clock() - self._printed < HEARTBEAT_S:
            return
        self._printed = self._clock()
        reached = f"{step.done} of {step.total}" if step.total else f"{step.done} done"
        line = Text("  " * (len(self._open) - 1) + visible(step.label))
        line.append(f" ... {reached} after {_duration(time.perf_counter() - step.started)}", "dim")
        if note:
            line.append(f": {visible(' '.join(note.split()))}")
        self._console.print(line, soft_wrap=True)

    def finish(self, note: str | None = None) -> None:
        """See `optimizer.progress.Progress.finish`."""
        self._end(note)
        self._printed = self._clock()


_REDRAW_S = 0.1


class Bars(_Steps):
    """Progress bars; each becomes a line when its step ends."""

    def __init__(self, target: Console) -> None:
        super().__init__(target)
        self._bars = _rich_progress(target)
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
        """Remove the bars, so that they do not overwrite later output."""
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        self._bars.stop()
        super().__exit__(kind, error, traceback)

    def start(self, label: str, total: int | None = None) -> None:
        """See `optimizer.progress.Progress.start`."""
        indented = Text("  " * len(self._open) + visible(label))
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
            self._bars.update(step.task, note=Text(visible(note)))
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


def _rich_progress(target: Console) -> RichProgress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    class PlainTextColumn(ProgressColumn):
        """A field of the task as plain text; rich's own text column would interpret markup."""

        def __init__(self, field: str) -> None:
            super().__init__()
            self._field = field

        def render(self, task: Task) -> Text:
            text: Text = task.fields[self._field]
            return text

    return RichProgress(
        PlainTextColumn("label"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        PlainTextColumn("note"),
        console=target,
        transient=True,
        redirect_stdout=False,
        # A refresh thread would disturb measurements.
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
