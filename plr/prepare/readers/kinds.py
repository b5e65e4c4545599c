"""Files that are something else than they are taken for: compressed otherwise, pointers, web pages, JSON, UTF-16."""

from __future__ import annotations

import os
from pathlib import Path

from plr.errors import DataError
from plr.prepare.readers.packed import PARQUET, UNREADABLE, open_plain, packing_of

__all__ = ["refuse_odd_name", "refuse_other_kinds"]

_HEAD = 1 << 16
_MAGIC = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet, which is one): unpack it, and save a spreadsheet as CSV",
    **{
        b"BZh%d%b" % (level, block): "compressed with bzip2: unpack it with bunzip2"
        for level in range(1, 10)
        for block in (b"1AY&SY", b"\x17rE8P\x90")  # text may begin with the first three bytes, too
    },
    b"\xfd7zXZ\0": "compressed with xz: unpack it with unxz",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"\x04\x22\x4d\x18": "compressed with LZ4: unpack it with unlz4",
    **{  # RFC 8878, 3.1.2; LZ4 has such frames, too, so both programs are named
        bytes([first]) + b"\x2a\x4d\x18": "packed with a frame to be skipped before what it holds, as pzstd and some "
        "LZ4 programs write: unpack it with unzstd or unlz4"
        for first in range(0x50, 0x60)
    },
    b"\xff\xfe\0\0": "text in UTF-32: save it as UTF-8",
    b"\0\0\xfe\xff": "text in UTF-32: save it as UTF-8",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
    b"SQLite format 3\0": "a database of SQLite: export the table of interactions as CSV",
    b"\x89HDF\r\n": "an HDF5 file: export the table of interactions as CSV or Parquet",
    b"ARROW1\0\0": "an Arrow (Feather) file: save it as Parquet",
    **dict.fromkeys(
        (b"\x80%c" % version for version in range(2, 6)),
        "a pickle, which is never opened since that can run any code: save its table as CSV or Parquet",
    ),
    b"%PDF": "a PDF",
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS, not the file: fetch it with `git lfs pull`",
    b"Obj\x01": "an Avro file: save it as Parquet",
    b"ORC": "an ORC file: save it as Parquet",
}
_REMEDY = "; accepted are text, as it is or packed with gzip or Zstandard, and Parquet"


def refuse_odd_name(path: Path) -> None:
    """Refuse a path that polars cannot open.

    Raises:
        DataError: its name is not UTF-8.
    """
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError("the name is not UTF-8; rename it", path) from None


def refuse_other_kinds(path: Path, *, json: bool = False) -> None:
    """Refuse a file, packed or not, that its beginning tells to be none of those that are read.

    Args:
        path: the file; of a folder nothing is looked at.
        json: whether JSON is one of those that are read.

    Raises:
        DataError: saying what it is and what to do.
    """
    refuse_odd_name(path)
    if not path.is_file():
        return
    try:
        with open_plain(path) as file:
            head = file.read(_HEAD)
    except UNREADABLE:
        return  # who reads it says so
    for magic, what in _MAGIC.items():
        if head.startswith(magic) and (magic != b"ORC" or b"\0" in head[:64]):
            raise DataError(f"the file is {what}{_REMEDY}", path)
    if (twice := packing_of(head)) is not None:
        raise DataError(f"the file is packed twice, within with {twice}: unpack it once", path)
    if head[257:262] == b"ustar":
        raise DataError(f"the file is a tar archive: unpack it, and name the file in it{_REMEDY}", path)
    if head.startswith(PARQUET):
        return  # what follows looks at text
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise DataError("the file is a web page (HTML or XML), such as a login or an error; fetch the data again", path)
    if not json and text[:1] in (b"{", b"[") and _is_json(text):
        raise DataError(
            "the file is JSON; interactions are read from text and Parquet: write a CSV with the columns user_id, "
            "item_id and timestamp",
            path,
        )
    if b"\r" in head and b"\n" not in head and head.count(b"\r") > head.count(b"\r\n") and len(head) > 1:
        returns = head.rstrip(b"\r").count(b"\r")
        if returns:
            raise DataError(
                "the lines end with a carriage return alone, as once on Macintoshes; save it with \\n", path
            )
    if head.count(b"\0") * 4 > len(head):
        raise DataError("every other byte is zero: it may be text in UTF-16, which is to be saved as UTF-8", path)


def _is_json(text: bytes) -> bool:
    """Return whether text that begins with a bracket goes on as JSON does: with a string, a value or its end."""
    after = text[1:].lstrip()[:1]
    return after in (b'"', b"}") if text[:1] == b"{" else after in (b"{", b"[", b"]", b'"')
