"""What the library says while it works: kept whole, because it is the only account of a build."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Any

from optimizer.engines.tensorrt.library import Library
from optimizer.errors import MissingDevice

__all__ = ["BuildLog", "make_logger", "one_line", "start"]

# On a machine without a driver every builder object complains once that it could not ask for one.
_NO_DRIVER = re.compile(r"cudaError 35|CUDA driver version is insufficient")
# Where in the library's sources a message comes from, and what it calls itself before it begins.
_PLACES = re.compile(
    r"\[[\w./]+(?:::\w+)*::?\d+(?:: \w+)?\] |"  # [pass.cpp:1500: run_passes]
    r"^\w+::\w+: |"  # IBuilder::buildSerializedNetwork:
    r"Error Code \d+: [A-Z][A-Za-z ]*\(|"  # Error Code 1: Myelin (
    r"\.? In \w+ at /.*"  # In compileGraph at /_src/...
)


@dataclass
class BuildLog:
    """Messages in the order in which they came, by severity.

    Attributes:
        ignore_missing_driver: Whether errors that only say that there is no CUDA driver are left
            out; true for a build that needs none.
    """

    ignore_missing_driver: bool = False
    messages: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, severity: str, text: str) -> None:
        """Keep a message; the library may call from any of its threads."""
        with self._lock:
            self.messages.append((severity, text))

    def of(self, *severities: str) -> list[str]:
        """The messages of some severities, without the spurious ones."""
        with self._lock:
            return [
                text
                for severity, text in self.messages
                if severity in severities
                and not (self.ignore_missing_driver and _NO_DRIVER.search(text))
            ]

    @property
    def errors(self) -> list[str]:
        """Errors of the library, without the spurious ones."""
        return self.of("ERROR", "INTERNAL_ERROR")

    @property
    def warnings(self) -> list[str]:
        """Warnings, each text once."""
        return list(dict.fromkeys(self.of("WARNING")))

    def reason(self, otherwise: str) -> str:
        """The first error as one readable line."""
        return one_line(self.errors[0]) if self.errors else otherwise


def one_line(text: str) -> str:
    """A message of the library without line breaks and the positions in its sources."""
    line = " ".join(text.split())
    while (shorter := _PLACES.sub("", line)) != line:
        line = shorter
    return line.strip().rstrip(".;")


def make_logger(trt: Any, log: BuildLog) -> Any:
    """A logger of the library that writes into ``log``."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(severity.name, msg)

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
            mend="look at nvidia-smi: the driver must be there and new enough for the library",
        ) from error
