"""One streaming pass over a source file: its hash, and for text whether it is text at all."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Callable

from plr.errors import DataError
from plr.prepare.readers.packed import packing_of

__all__ = ["fingerprint"]

_CHUNK = 1 << 18  # stays in a core's own cache from one look at it to the next


def fingerprint(
    path: str | os.PathLike[str],
    *,
    text: bool,
    forbidden: bytes = b"\0",
    look: Callable[[bytes], None] | None = None,
) -> str:
    """Return the SHA-256 (hex) of the bytes of ``path``; memory does not grow with the file.

    With ``text=True`` a file that is not compressed must also be non-empty UTF-8 without any byte of
    ``forbidden``, and ``look`` is called with each block of it.

    Raises:
        DataError: naming file and line, for an empty file, a forbidden byte, or bytes that are not UTF-8.
    """
    digest = hashlib.sha256()
    decode = codecs.getincrementaldecoder("utf-8")().decode
    blank, pending = True, False
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if blank and file.tell() <= _CHUNK and packing_of(chunk) is not None:
                text = False
            if not text:
                blank = False
                continue
            blank = blank and not chunk.strip()
            if any(byte in chunk for byte in forbidden):
                raise _not_text(path, forbidden)
            if look is not None:
                look(chunk)
            if pending or not chunk.isascii():  # to look is many times as fast as to decode
                try:
                    decode(chunk)
                except UnicodeDecodeError:
                    raise _not_text(path, forbidden) from None
                pending = True
    if blank:
        raise DataError("the file is empty", path)
    if pending:
        try:
            decode(b"", True)
        except UnicodeDecodeError:
            raise _not_text(path, forbidden) from None
    return digest.hexdigest()


def _not_text(path: str | os.PathLike[str], forbidden: bytes) -> DataError:
    """Find the line again: slow, but only for a file that is refused anyway."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            for byte in line.translate(None, bytes(set(range(256)) - set(forbidden)))[:1]:
                return DataError(f"byte 0x{byte:02x} does not belong in a text file; is it binary?", path, number)
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = line[error.start]
                return DataError(
                    f"byte 0x{bad:02x} at column {error.start + 1} is not UTF-8; save the file as UTF-8",
                    path,
                    number,
                )
    return DataError("the file changed while it was read", path)
