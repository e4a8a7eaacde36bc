"""Progress of a build, and the only way to stop one: the library asks after every step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from optimizer.progress import Progress

__all__ = ["Watch", "interruptible", "make_monitor"]


class Watch:
    """Whether a build should go on, and why not.

    Attributes:
        interrupted: Somebody pressed Ctrl-C.
        failure: What went wrong in reporting progress; raised again after the build, because an
            exception must not pass through the library.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.failure: Exception | None = None

    @property
    def stopped(self) -> bool:
        """Whether the library is to give up."""
        return self.interrupted or self.failure is not None


@contextlib.contextmanager
def interruptible(watch: Watch) -> Iterator[None]:
    """Turn Ctrl-C into ``watch.interrupted`` while the library works.

    Python raises KeyboardInterrupt between two of its own instructions, which during a build is
    inside a callback from C++, where no exception may come out. A process that handles or ignores
    the signal itself keeps doing so.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield
        return

    def remember(*_: object) -> None:
        watch.interrupted = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def make_monitor(trt: Any, progress: Progress, label: str, watch: Watch) -> Any:
    """A progress monitor of the library that reports its outermost phase as one piece of work.

    Phases inside it only change the remark: their numbers of steps are the library's internals.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost: str | None = None
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock, _kept(watch):
                if parent_phase or self._outermost is not None:
                    progress.advance(0, note=phase_name)
                else:
                    self._outermost = phase_name
                    progress.start(label, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            with self._lock, _kept(watch):
                if phase_name == self._outermost:
                    progress.advance()
            return not watch.stopped

        def phase_finish(self, phase_name: str) -> None:
            with self._lock, _kept(watch):
                if phase_name == self._outermost:
                    self._outermost = None
                    progress.finish()

    return Monitor()


@contextlib.contextmanager
def _kept(watch: Watch) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again once the library has returned
        watch.failure = watch.failure or error
