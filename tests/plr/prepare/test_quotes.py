"""Quotes that RFC 4180 does not allow are found while a file is read; what it allows is read."""

from __future__ import annotations

import csv
import gzip
import io
import random
import warnings

import pytest

from plr.data import prepare
from plr.errors import DataError
from plr.prepare import PrepareOptions, write_folder
from plr.prepare.readers import quotes
from plr.prepare.readers.quotes import LONGEST, RecordScan

HEADER = "user_id,item_id,timestamp,title\n"
ESCAPED, UNESCAPED = r'"5\" disk"', '"5" disk"'


def lines_with(bad: dict[int, str], title: str = '"plain"', count: int = 20) -> str:
    """Return a CSV whose titles are `title`, but for those of some 1-based lines."""
    rows = (f"u{n % 4},i{n % 7},{1_600_000_000 + n},{bad.get(n + 2, title)}\n" for n in range(count))
    return HEADER + "".join(rows)


@pytest.fixture(autouse=True, params=["compiled", "interpreted"])
def scan(request, monkeypatch):
    """Both ways to count records."""
    if request.param == "interpreted":
        monkeypatch.setattr(quotes, "_Compiled", None)
    elif quotes._Compiled is None:
        pytest.skip("the C++ extension is not built")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
@pytest.mark.parametrize("title", ['"plain"', "plain"])
@pytest.mark.parametrize("bad", [ESCAPED, UNESCAPED, '"5" ', '"5"x', '"open', '"a""b" "c"'])
@pytest.mark.parametrize("second", [9, 15])
def test_misplaced_quotes_in_an_even_number_of_lines(write, tmp_path, pack, title, bad, second):
    path = write("a.csv", pack(lines_with({8: bad, second: bad}, title).encode()))
    with pytest.raises(DataError, match=r'a\.csv:8: a quote \("\) is opened.*--skip_bad_lines') as caught:
        write_folder([path], tmp_path / "out", PrepareOptions())
    assert caught.value.line == 8
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = write_folder([path], tmp_path / "out", PrepareOptions(), skip_bad_lines=True)
    assert [entry["line"] for entry in report["skipped_lines"]["first"]] == [8, second]
    assert report["read"]["interactions"] == 18


@pytest.mark.parametrize("bad", [ESCAPED, UNESCAPED])
def test_two_such_lines_far_apart_in_a_long_file(write, tmp_path, bad):
    path = write("a.csv", lines_with({5_000: bad, 55_000: bad}, count=60_000))
    with pytest.raises(DataError, match=r"a\.csv:5000: a quote"):
        prepare(path)
    report = write_folder([path], tmp_path / "out", PrepareOptions(), skip_bad_lines=True)
    assert [entry["line"] for entry in report["skipped_lines"]["first"]] == [5_000, 55_000]
    assert report["read"]["interactions"] == 59_998


@pytest.mark.parametrize(
    "line",
    ['u1,5" a,6" b,c', 'u1,i1,5" a,6" b', 'u1,i1,a "b,c"', 'u1,i1,a "b,c" d', 'u8,i"\t"","\r\nu8,2,"\r\n-""",i9'],
)
def test_a_separator_between_two_quotes_of_unquoted_fields(write, tmp_path, line):
    """By the rule two fields; to the parser one, of as many records as there are but with other ids."""
    good = "u1,i1,a,b\n" * 3
    path = write("a.csv", f"user_id,item_id,title,note\n{good}{line}\n{good}")
    with pytest.raises(DataError, match=r'a\.csv:5: a quote \("\) stands within a field') as caught:
        prepare(path, timestamp_column="none")
    assert caught.value.line == 5
    options = PrepareOptions(timestamp_column="none")
    report = write_folder([path], tmp_path / "out", options, skip_bad_lines=True)
    assert report["skipped_lines"]["first"][0]["line"] == 5


def test_a_folder_that_was_prepared_before_is_not_kept_for_such_a_file(write, tmp_path, monkeypatch):
    path = write("a.csv", lines_with({8: ESCAPED, 9: ESCAPED}, count=60))
    monkeypatch.setattr(RecordScan, "check", lambda self, parsed: None)  # as it was read before
    write_folder([path], tmp_path / "out", PrepareOptions())
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"a\.csv:8: a quote"):
        write_folder([path], tmp_path / "out", PrepareOptions())


@pytest.mark.parametrize("header", ['user,item,x","no\r\nte', '"user" ,item', 'user,item,"x'])
def test_a_header_with_a_misplaced_quote(write, header):
    with pytest.raises(DataError, match=r'a\.csv:1: a quote \("\) '):
        prepare(write("a.csv", header))


@pytest.mark.parametrize("end", ['u0,i0,5,"', '"'])
def test_a_quote_that_begins_a_field_and_ends_the_file(write, capfd, end):
    path = write("a.csv", lines_with({}) + end)
    with pytest.raises(DataError, match=r'a\.csv:22: a quote \("\) is opened and never closed'):
        prepare(path)
    assert capfd.readouterr().err == ""  # polars would panic


def test_a_left_out_record_of_several_lines_says_where_it_ends(write, tmp_path):
    path = write("a.csv", lines_with({9: '"a\nb",more'}))
    report = write_folder([path], tmp_path / "out", PrepareOptions(), skip_bad_lines=True)
    expected = {"file": "a.csv", "line": 9, "reason": "5 fields; the header has 4 (the record ends on line 10)"}
    assert report["skipped_lines"] == {"count": 1, "first": [expected]}


def test_a_record_of_several_lines_whose_value_is_wrong_says_where_it_ends(write, tmp_path):
    path = write("a.csv", lines_with({}) + 'u1,i1,x,"a\n\nb"\nu1,i1,y,b\n' + 'u1,i1,z,"""\n"\n')
    report = write_folder([path], tmp_path / "out", PrepareOptions(), skip_bad_lines=True)
    found = [(entry["line"], entry["reason"].partition(" (the ")[2]) for entry in report["skipped_lines"]["first"]]
    assert found == [(22, "record ends on line 24)"), (25, ""), (26, "record ends on line 27)")]


def test_what_the_rule_allows_is_read(write):
    titles = ['"a ""b"" c"', '"a\nb"', '"a\r\n\r\nb"', '"a, b"', '""', '""""', "it's 3' x 5'", 'a "b" c', "", '"\n\n"']
    titles.append('a""b "c"')
    text = HEADER + "".join(f'"u{n % 3}",i{n % 4},{n},{title}\n' for n, title in enumerate(titles * 4))
    expected = [row[1] for row in csv.reader(io.StringIO(text, newline=""), strict=True)][1:]
    for ends in ("\n", "\r\n"):
        dataset = prepare(write("a.csv", text.replace("\n", ends)), split="leave-one-out")
        assert dataset.report["read"]["interactions"] == len(expected) == 44
        found = [dataset.item_ids[item] for item in dataset.items.tolist()]
        assert sorted(found) == sorted(expected)


def test_a_quoted_field_of_many_lines_is_taken_for_a_stray_quote(write):
    for count, fine in ((LONGEST - 1, True), (LONGEST, False)):
        path = write("a.csv", lines_with({7: '"' + "word\n" * count + '"'}, count=40))
        if fine:
            assert prepare(path).report["read"]["interactions"] == 40
        else:
            with pytest.raises(DataError, match=r"a\.csv:7: a quote .* not closed within 1,000 lines"):
                prepare(path)


def test_a_quote_that_swallows_lines_up_to_a_quote_at_a_fields_end(write):
    text = lines_with({3: '"open', 1_500: 'x"'}, "plain", count=3_000)  # by the rule one field of 1,498 lines
    with pytest.raises(DataError, match=r"a\.csv:3: a quote .* not closed within"):
        prepare(write("a.csv", text))


def scanned(engine, text: bytes, sizes: list[int], separator: str = ",", quoted: bool = True, longest: int = 5):
    scan, at = engine(separator, quoted, longest), 0
    for size in [*sizes, len(text)]:
        scan.feed(text[at : at + size])
        at += size
    scan.finish()
    return (scan.problem, scan.opened) if scan.problem else scan.records


@pytest.mark.skipif(quotes._Compiled is None, reason="the C++ extension is not built")
@pytest.mark.parametrize("scan", ["compiled"], indirect=True)
def test_both_scans_agree():
    draw = random.Random(2)
    for _ in range(20_000):
        pieces = draw.choices(
            ['"', '""', ",", "\n", "a", "bc" * 40, "\r\n", "\r", ',"', '",', '"\n', '\n"', "\n\n"], k=30
        )
        text = draw.choice([b"", b"\xef\xbb\xbf", b"\xef\xbb"]) + "".join(pieces).encode()
        sizes = [draw.randint(0, draw.choice([2, 100])) for _ in range(draw.randint(0, 3))]
        quoted = draw.random() < 0.9
        found = [scanned(engine, text, sizes, quoted=quoted) for engine in (quotes._Compiled, quotes._Scan)]
        assert found == [scanned(quotes._Scan, text, [], quoted=quoted)] * 2, (text, sizes)


def test_a_byte_order_mark_may_come_in_parts(tmp_path):
    text = b'\xef\xbb\xbf\n\r\n"user_id",item_id\nu,i\n"u\n",i\n'
    scan = RecordScan(tmp_path / "a.csv", ",", True)
    for at in range(len(text)):
        scan.feed(text[at : at + 1])
    scan.check(2)
