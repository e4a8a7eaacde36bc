"""Reports the progress of a build and lets it be interrupted between the library's steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from optimizer.progress import Progress

__all__ = ["Watch", "interruptible", "make_monitor"]


class Watch:
    """Whether to stop a build, and why.

    Attributes:
        interrupted: Ctrl-C was pressed.
        failure: An exception while reporting progress; raised again after the build, because no
            exception may pass through the library.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.failure: Exception | None = None

    @property
    def stopped(self) -> bool:
        """Whether the library should stop."""
        return self.interrupted or self.failure is not None


@contextlib.contextmanager
def interruptible(watch: Watch) -> Iterator[None]:
    """Turn Ctrl-C into ``watch.interrupted`` while the library works.

    Python raises KeyboardInterrupt between bytecode instructions. During a build that is inside a
    callback from C++, where no exception may escape. If the process has its own handler for the
    signal or ignores it, nothing is changed.
    """
    is_default = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not is_default:
        yield
        return

    def on_interrupt(*_: object) -> None:
        watch.interrupted = True

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def make_monitor(trt: Any, progress: Progress, label: str, watch: Watch) -> Any:
    """A progress monitor for the library that reports its outermost phase as one task.

    Inner phases only change the note: their numbers of steps are internals of the library.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost: str | None = None
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock, _store_failure(watch):
                if parent_phase or self._outermost is not None:
                    progress.advance(0, note=phase_name)
                else:
                    self._outermost = phase_name
                    progress.start(label, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            with self._lock, _store_failure(watch):
                if phase_name == self._outermost:
                    progress.advance()
            return not watch.stopped

        def phase_finish(self, phase_name: str) -> None:
            with self._lock, _store_failure(watch):
                if phase_name == self._outermost:
                    self._outermost = None
                    progress.finish()

    return Monitor()


@contextlib.contextmanager
def _store_failure(watch: Watch) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again after the library returns
        watch.failure = watch.failure or error
