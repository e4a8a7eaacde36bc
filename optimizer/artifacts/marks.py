"""Marks: how a file without a manifest shows that this package wrote it and nobody edited it.

A mark names the kind of file and the sha256 of everything else in it. It is a field of JSON, the
last line of other text, the comment of a ZIP file (NPZ files are ZIP files), and the last text chunk
of a PNG image. It protects work from being overwritten; it is no signature, and anybody can write
one.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

from optimizer.artifacts.atomic_files import write_text_atomically

__all__ = ["DIGEST_FIELD", "json_digest", "mark_of", "mark_zip", "marked_png", "write_marked_text"]

DIGEST_FIELD = "digest"
"""Field of a JSON result with the sha256 of everything else in the file."""

_MARK = re.compile(rb"resnet-opt ([a-z]+) sha256:([0-9a-f]{64})")
_LONGEST_MARK = 160
_LARGEST_JSON = 1 << 28
_CHUNK = 1 << 20
_COMMENTS = {".html": ("<!-- ", " -->"), ".md": ("<!-- ", " -->")}
_END_OF_ZIP = b"PK\x05\x06"
_COMMENT_LENGTH = struct.Struct("<H")
_END_OF_ZIP_SIZE = 22
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_KEYWORD = b"Software\0"
_LENGTH = struct.Struct(">I")


def json_digest(raw: dict[str, Any]) -> str:
    """The sha256 of a JSON object without its digest, independent of its layout in the file."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def write_marked_text(path: Path, text: str, kind: str) -> None:
    """Write text atomically, with a mark as its last line: a comment in HTML, Markdown or YAML."""
    before, after = _COMMENTS.get(path.suffix.lower(), ("# ", ""))
    text = text if text.endswith("\n") else text + "\n"
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    write_text_atomically(path, f"{text}{before}resnet-opt {kind} sha256:{sha256}{after}\n")


def mark_zip(path: Path, kind: str) -> None:
    """Add a mark to a ZIP file that has no comment yet."""
    with path.open("r+b") as stream:
        size = stream.seek(0, 2) - _COMMENT_LENGTH.size
        sha256 = _sha256_of(stream, size)
        comment = f"resnet-opt {kind} sha256:{sha256}".encode()
        stream.seek(size)
        stream.write(_COMMENT_LENGTH.pack(len(comment)) + comment)


def marked_png(image: bytes, kind: str) -> bytes:
    """A PNG image with a mark as its last chunk before the end."""
    body = image.removesuffix(_PNG_END)
    mark = f"resnet-opt {kind} sha256:{hashlib.sha256(body).hexdigest()}".encode()
    chunk = b"tEXt" + _PNG_KEYWORD + mark
    checksum = _LENGTH.pack(zlib.crc32(chunk))
    return body + _LENGTH.pack(len(chunk) - 4) + chunk + checksum + _PNG_END


def mark_of(path: Path) -> str | None:
    """The kind of file that a mark names; ``None`` without a mark, or if the file was edited."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        if stream.read(1) == b"{":
            return _json_mark(path) if size <= _LARGEST_JSON else None
        stream.seek(max(0, size - _LONGEST_MARK))
        tail = stream.read()
        found = None
        for found in _MARK.finditer(tail):  # noqa: B007 - the last one
            pass
        if found is None:
            return None
        head = tail[: found.start()]
        if tail.endswith(_PNG_END) and head.endswith(b"tEXt" + _PNG_KEYWORD):
            covered = size - len(tail) + len(head) - len(_PNG_KEYWORD) - 8
            intact = found.end() + 4 + len(_PNG_END) == len(tail)
        elif (end := head.rfind(_END_OF_ZIP)) >= 0:
            intact = found.end() == len(tail) and found.start() == end + _END_OF_ZIP_SIZE
            covered = size - len(tail) + found.start() - _COMMENT_LENGTH.size
        else:
            covered = size - len(tail) + head.rfind(b"\n") + 1
            intact = b"\n" in head and tail[found.end() :] in {b"\n", b" -->\n"}
        if not intact or _sha256_of(stream, covered) != found[2].decode():
            return None
        return found[1].decode()


def _json_mark(path: Path) -> str | None:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict):
        return None
    digest, kind = raw.pop(DIGEST_FIELD, None), raw.get("kind")
    return kind if isinstance(kind, str) and digest == json_digest(raw) else None


def _sha256_of(stream: Any, size: int) -> str:
    """The sha256 of the first ``size`` bytes."""
    stream.seek(0)
    hasher = hashlib.sha256()
    while size > 0 and (chunk := stream.read(min(size, _CHUNK))):
        hasher.update(chunk)
        size -= len(chunk)
    return hasher.hexdigest()
