"""The JUnit file: valid XML whatever the names, complete or not there at all."""

import os
from datetime import datetime, timezone
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmgcli.errors import OutputError
from cmgcli.junit import write_junit
from cmgcli.rows import Row
from cmgcli.verdict import Tally, Verdict, limits_of

BEGAN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)


def verdict_of(*rows: Row, max_anomalies: str | None = None) -> Verdict:
    tally = Tally(keep=True)
    for row in rows:
        tally.add(row)
    return tally.verdict(limits_of(max_anomalies=max_anomalies))


def written(verdict: Verdict, path) -> ElementTree.Element:
    write_junit(verdict, path, threshold=lambda row: 1.5, why=lambda row: f"the head, {row.head_score}", began=BEGAN, seconds=1.25)
    return ElementTree.parse(path).getroot()


def test_each_image_and_each_gate_is_a_test_case(tmp_path):
    strange = Row("line/a.png", score=2.25, anomalous=1, p_value=0.01, head_score=3.0, caption="nut <M6> & co")
    verdict = verdict_of(strange, Row("b.png", score=1.0, anomalous=0, p_value=0.5), Row("/c/d.png", error="empty"), max_anomalies="0")
    root = written(verdict, tmp_path / "j.xml")
    suite = root[0]
    for element in (root, suite):
        assert {name: element.get(name) for name in ("name", "tests", "failures", "errors", "time")} == {
            "name": "cmg score", "tests": "4", "failures": "2", "errors": "1", "time": "1.250",
        }  # fmt: skip
    assert suite.get("timestamp") == "2024-05-06T07:08:09+00:00" and suite.get("skipped") == "0"
    assert [(case.get("classname"), case.get("name")) for case in suite] == [
        ("line", "a.png"), (".", "b.png"), ("/c", "d.png"), ("gates", "--max-anomalies 0"),
    ]  # fmt: skip
    failure = suite[0][0]
    assert failure.get("message") == "score 2.25 is above the threshold 1.5, p-value 0.01"
    assert failure.text == "line/a.png\ncaption: nut <M6> & co\nhead score 3\nthe head, 3.0"
    assert len(suite[1]) == 0
    assert suite[2][0].tag == "error" and suite[2][0].get("message") == "empty"
    assert suite[3][0].get("message") == "1 of 2 readable images is anomalous, which --max-anomalies 0 does not allow"


@given(st.text(st.characters(exclude_categories=())))
def test_any_name_makes_valid_xml(tmp_path_factory, name):
    row = Row(name, score=2.0, anomalous=1, p_value=0.1, caption=name)
    root = written(verdict_of(row, Row(name, error=name)), tmp_path_factory.getbasetemp() / "any.xml")
    assert len(root[0]) == 2


def test_bytes_and_control_characters_are_spelled_out(tmp_path):
    root = written(verdict_of(Row("caf\udce9/\x01.png")), tmp_path / "j.xml")
    assert (root[0][0].get("classname"), root[0][0].get("name")) == (r"caf\xe9", r"\x01.png")


def test_a_run_without_images_is_an_empty_suite(tmp_path):
    assert written(verdict_of(), tmp_path / "j.xml")[0].get("tests") == "0"


def test_the_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "j.xml"
    path.write_text("old")
    written(verdict_of(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["j.xml"]
    with pytest.raises(OutputError, match="--junit"):
        written(verdict_of(), tmp_path / "none" / "j.xml")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="--junit"):
        written(verdict_of(), tmp_path / "folder")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_junit(verdict_of(), pipe, threshold=lambda row: 0.0, why=str, began=BEGAN, seconds=0.0)
    assert ElementTree.fromstring(os.read(reader, 65536)).tag == "testsuites"
    assert pipe.is_fifo()
    os.close(reader)
