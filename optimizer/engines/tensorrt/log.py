"""What the library says while it works: kept whole, because it is the only account of a build.

TensorRT keeps the first logger that a process gives it and sends everything there, whichever logger
a later runtime was made with. So there is one logger a library and process, and each `BuildLog` is a
view of what it wrote: everything since the log was made, or what one thread wrote since a call began.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from optimizer.engines.tensorrt.library import Library
from optimizer.errors import MissingDevice

__all__ = ["BuildLog", "Journal", "make_logger", "one_line", "start"]

_KEPT = 200_000
"""Messages kept of a process; a VERBOSE build of a ResNet-50 writes some thousands."""
_ERRORS = ("ERROR", "INTERNAL_ERROR")
# On a machine without a driver every builder object complains once that it could not ask for one.
_NO_DRIVER = re.compile(r"cudaError 35|CUDA driver version is insufficient")
# Where in the library's sources a message comes from, and what it calls itself before it begins.
_PLACES = re.compile(
    r"\[[\w./]+(?:::\w+)*::?\d+(?:: \w+)?\] |"  # [pass.cpp:1500: run_passes]
    r"^\w+::\w+: |"  # IBuilder::buildSerializedNetwork:
    r"Error Code \d+: [A-Z][A-Za-z ]*\(|"  # Error Code 1: Myelin (
    r"\.? In \w+ at /.*"  # In compileGraph at /_src/...
)

# The kind of error is left out but for this one, whose text alone says nothing.
_MEMORY = re.compile(r"Error Code \d+: OutOfMemory \(")


@dataclass(frozen=True)
class Message:
    """One message of the library.

    Attributes:
        thread: The thread that was inside the library when it was written.
    """

    severity: str
    text: str
    thread: int


class Journal:
    """The newest messages of one library in this process, in the order in which they came."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self.count = 0
        """How many have come so far: the number that the next one gets."""

    def add(self, severity: str, text: str) -> None:
        """Keep a message; the library may call from any of its threads."""
        message = Message(severity, text, threading.get_ident())
        with self._lock:
            self._messages.append(message)
            self.count += 1

    def since(self, number: int) -> list[Message]:
        """The messages from this number on, as far as they are still kept."""
        with self._lock:
            newest = self.count - number
            return list(self._messages)[-newest:] if newest > 0 else []


class BuildLog:
    """What the library wrote since this log was made.

    Args:
        ignore_missing_driver: Leave out errors that only say that there is no CUDA driver; true for
            a build that needs none.
    """

    def __init__(self, *, ignore_missing_driver: bool = False) -> None:
        self.ignore_missing_driver = ignore_missing_driver
        self._journal = Journal()
        self._begin = 0

    def follow(self, journal: Journal) -> None:
        """Read from now on what is written into ``journal``."""
        self._journal, self._begin = journal, journal.count

    def add(self, severity: str, text: str) -> None:
        """Keep a message that did not come through the logger."""
        self._journal.add(severity, text)

    @property
    def position(self) -> int:
        """The number of the next message, for `reason_since`."""
        return self._journal.count

    def of(self, *severities: str) -> list[str]:
        """The messages of some severities, without the spurious ones."""
        return [message.text for message in self._since(self._begin, severities)]

    @property
    def errors(self) -> list[str]:
        """Errors of the library, without the spurious ones."""
        return self.of(*_ERRORS)

    @property
    def warnings(self) -> list[str]:
        """Warnings, each text once."""
        return list(dict.fromkeys(self.of("WARNING")))

    def reason(self, otherwise: str) -> str:
        """The first error as one readable line."""
        return one_line(self.errors[0]) if self.errors else otherwise

    def reason_since(self, position: int, otherwise: str) -> str:
        """The first error since a call began, as one readable line.

        Errors of this thread come first: several sessions may compute at the same time, each in its
        own thread, and all write into one logger.
        """
        found = self._since(position, _ERRORS)
        own = [message for message in found if message.thread == threading.get_ident()]
        return next((one_line(message.text) for message in own or found), otherwise)

    def texts_since(self, position: int) -> list[list[str]]:
        """Severity and text of every message since a call began, VERBOSE ones left out."""
        return [
            [message.severity, message.text]
            for message in self._journal.since(position)
            if message.severity != "VERBOSE"
        ]

    def _since(self, position: int, severities: tuple[str, ...]) -> list[Message]:
        return [
            message
            for message in self._journal.since(position)
            if message.severity in severities
            and not (self.ignore_missing_driver and _NO_DRIVER.search(message.text))
        ]


def one_line(text: str) -> str:
    """A message of the library without line breaks and the positions in its sources."""
    line = _MEMORY.sub("out of memory (", " ".join(text.split()))
    while (shorter := _PLACES.sub("", line)) != line:
        line = shorter
    return line.strip().rstrip(".;")


_LOGGERS: dict[str, tuple[Journal, Any]] = {}
"""The logger of each library in this process; it outlives everything that was made with it."""
_STARTING = threading.Lock()


def make_logger(trt: Any, log: BuildLog) -> Any:
    """The library's logger in this process, whose messages ``log`` holds from now on."""
    with _STARTING:
        if trt.__name__ not in _LOGGERS:
            journal = Journal()
            _LOGGERS[trt.__name__] = journal, _new_logger(trt, journal)
        journal, logger = _LOGGERS[trt.__name__]
    log.follow(journal)
    return logger


def _new_logger(trt: Any, journal: Journal) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            journal.add(severity.name, msg)

    return Logger()


def start(library: Library, kind: Any, logger: Any, log: BuildLog) -> Any:
    """Make a builder or a runtime.

    Raises:
        MissingDevice: The library cannot start here; its constructor then returns a null pointer,
            which Python sees as a TypeError without a reason.
    """
    try:
        return kind(logger)
    except TypeError as error:
        raise MissingDevice(
            f"{library.title} could not start: {log.reason('it does not say why')}",
            hint="look at nvidia-smi: the driver must be there and new enough for the library",
        ) from error
