"""The library's log messages, kept because they are the only record of why a build failed.

TensorRT keeps the first logger of a process and sends all messages to it, whichever logger a later
runtime is created with. So there is one logger per library and process, and each `BuildLog` is a view
of its messages: all since the log was created, or those of one thread since a call began.
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
"""Messages kept per process; a VERBOSE build of a ResNet-50 writes several thousand."""
_ERRORS = ("ERROR", "INTERNAL_ERROR")
# On a machine without a driver, every builder object logs one error about it.
_NO_DRIVER = re.compile(r"cudaError 35|CUDA driver version is insufficient")
# The source position, function name and error code around the text of a message.
_PREFIXES = re.compile(
    r"\[[\w./]+(?:::\w+)*::?\d+(?:: \w+)?\] |"  # [pass.cpp:1500: run_passes]
    r"^\w+::\w+: |"  # IBuilder::buildSerializedNetwork:
    r"Error Code \d+: [A-Z][A-Za-z ]*\(|"  # Error Code 1: Myelin (
    r"\.? In \w+ at /.*"  # In compileGraph at /_src/...
)

# Error kinds are removed except this one, whose text is meaningless without it.
_MEMORY = re.compile(r"Error Code \d+: OutOfMemory \(")


@dataclass(frozen=True)
class Message:
    """One message of the library.

    Attributes:
        thread: The thread that called the logger.
    """

    severity: str
    text: str
    thread: int


class Journal:
    """The newest messages of one library in this process, in order."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self.count = 0
        """The number of messages so far, which is the number of the next one."""

    def add(self, severity: str, text: str) -> None:
        """Add a message; the library may call from any thread."""
        message = Message(severity, text, threading.get_ident())
        with self._lock:
            self._messages.append(message)
            self.count += 1

    def since(self, number: int) -> list[Message]:
        """The messages from this number on that are still kept."""
        with self._lock:
            newest = self.count - number
            return list(self._messages)[-newest:] if newest > 0 else []


class BuildLog:
    """The messages of the library since this log was created.

    Args:
        ignore_missing_driver: Leave out errors about a missing CUDA driver; for builds that do not
            need one.
    """

    def __init__(self, *, ignore_missing_driver: bool = False) -> None:
        self.ignore_missing_driver = ignore_missing_driver
        self._journal = Journal()
        self._begin = 0

    def follow(self, journal: Journal) -> None:
        """Read the messages that ``journal`` receives from now on."""
        self._journal, self._begin = journal, journal.count

    def add(self, severity: str, text: str) -> None:
        """Add a message that did not come from the logger."""
        self._journal.add(severity, text)

    @property
    def position(self) -> int:
        """The number of the next message, for `reason_since`."""
        return self._journal.count

    def of(self, *severities: str) -> list[str]:
        """The messages of some severities, without ignored ones."""
        return [message.text for message in self._since(self._begin, severities)]

    @property
    def errors(self) -> list[str]:
        """The library's errors, without ignored ones."""
        return self.of(*_ERRORS)

    @property
    def warnings(self) -> list[str]:
        """The library's warnings, without duplicates."""
        return list(dict.fromkeys(self.of("WARNING")))

    def reason(self, otherwise: str) -> str:
        """The first error on one line; ``otherwise`` if there is none."""
        return one_line(self.errors[0]) if self.errors else otherwise

    def reason_since(self, position: int, otherwise: str) -> str:
        """The first error since a call began, on one line; ``otherwise`` if there is none.

        Errors of this thread take precedence: several sessions may compute at the same time, each in
        its own thread, and all share one logger.
        """
        errors = self._since(position, _ERRORS)
        of_thread = [message for message in errors if message.thread == threading.get_ident()]
        return next((one_line(message.text) for message in of_thread or errors), otherwise)

    def texts_since(self, position: int) -> list[list[str]]:
        """Severity and text of every message since a call began, except VERBOSE ones."""
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
    """A message of the library without line breaks and source positions."""
    line = _MEMORY.sub("out of memory (", " ".join(text.split()))
    while (shorter := _PREFIXES.sub("", line)) != line:
        line = shorter
    return line.strip().rstrip(".;")


_LOGGERS: dict[str, tuple[Journal, Any]] = {}
"""The logger of each library in this process; it must outlive every object created with it."""
_STARTING = threading.Lock()


def make_logger(trt: Any, log: BuildLog) -> Any:
    """The library's logger in this process; ``log`` follows its messages from now on."""
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
    """Create a builder or a runtime.

    Raises:
        MissingDevice: The library cannot start on this machine. Its constructor returns a null
            pointer then, which raises a TypeError without a reason in Python.
    """
    try:
        return kind(logger)
    except TypeError as error:
        raise MissingDevice(
            f"{library.title} could not start: {log.reason('no reason given')}",
            hint="check with nvidia-smi that the driver is installed and new enough for the library",
        ) from error
