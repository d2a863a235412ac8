"""Text files: regular files of bounded size, in UTF-8, whatever editor wrote them.

A byte-order mark is taken away, and each line end (CRLF, a lone CR) becomes "\\n". Anything else
that is not plain text is refused with the byte and the line at which it stands, and the way out.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
from pathlib import Path

MAX_BYTES = 64 << 20
"""What is read of a file by default."""
MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""How files of other encodings begin; the longer mark first, since one begins like another."""
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
LINE_END = re.compile(r"\r\n?")


def open_regular(path: str | Path) -> io.BufferedReader:
    """A regular file, opened for reading bytes; waits for nobody.

    Raises FileNotFoundError where there is none, and ValueError on a directory, pipe, socket or
    device.
    """
    path = Path(path)
    try:
        _check_kind(path, path.stat().st_mode)  # before it is opened: some devices act then
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    try:
        _check_kind(path, os.fstat(handle).st_mode)
    except ValueError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """All of a regular file; raises ValueError on a larger one, and as `open_regular` does."""
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"{path}: more than {max_bytes:,} bytes; take a part of it")
    return data


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file, its lines ended by "\\n"; raises ValueError as `decode` does."""
    return with_plain_lines(decode(read_bytes(path, max_bytes), path))


def read_beginning(path: str | Path, max_bytes: int) -> tuple[str, bool]:
    """The text of a UTF-8 file, and whether that is all of it: of a file of more than `max_bytes`
    the whole lines that begin it, or, where not one is whole, its whole characters."""
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    whole = len(data) <= max_bytes
    if not whole:
        data = data[: whole_characters(data[:max_bytes])]
    text = with_plain_lines(decode(data, path))
    return (text if whole or "\n" not in text else text[: text.rindex("\n") + 1]), whole


def decode(data: bytes, where: str | Path, *, offset: int = 0, line: int = 1) -> str:
    """The text of UTF-8 bytes, line ends as they are, without a byte-order mark at the beginning.

    `offset` and `line` are those of the first byte in its file, `where` the file's name in errors.
    Raises ValueError, naming byte and line, on what is no UTF-8 and on a NUL byte.
    """
    if offset == 0:
        for mark, name in MARKS:
            if data.startswith(mark):
                raise ValueError(f"{where}: {name}, not UTF-8; {_convert(name)}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place(data, error.start, offset, line)
        raise ValueError(
            f"{where}: {place} is not UTF-8 ({error.reason}); {_convert('WINDOWS-1252')}, or from "
            "what it is written in"
        ) from None
    check_text(text, where, offset=offset, line=line)
    return text.removeprefix("\ufeff") if offset == 0 else text


def check_text(text: str, where: str | Path, *, offset: int = 0, line: int = 1) -> None:
    """Raises ValueError on a NUL character: no text holds one, but UTF-16 without its mark does."""
    if (at := text.find("\0")) >= 0:
        data = text[:at].encode()
        raise ValueError(
            f"{where}: {_place(data, len(data), offset, line)} is NUL, so this is no text, or "
            f"UTF-16 without a byte-order mark; {_convert('UTF-16LE')}"
        )


def with_plain_lines(text: str) -> str:
    """The text with "\\n" for every line end."""
    return LINE_END.sub("\n", text) if "\r" in text else text


def whole_characters(data: bytes) -> int:
    """How many of these bytes of UTF-8 do not belong to a character that is cut off at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # the first byte of a character; its high bits tell the length
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return len(data) if length <= back else len(data) - back
    return len(data)


def _check_kind(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for is_kind, name in KINDS if is_kind(mode)), "no regular file")
    way_out = "" if stat.S_ISDIR(mode) else "; write what it gives to a file first"
    raise ValueError(f"{path} is {kind}, and a file is needed{way_out}")


def _place(data: bytes, at: int, offset: int, line: int) -> str:
    before = data[:at]
    ends = before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")
    return f"byte {offset + at} (line {line + ends})"


def _convert(encoding: str) -> str:
    return f"save it as UTF-8, as by iconv -f {encoding} -t UTF-8 FILE > NEW"
