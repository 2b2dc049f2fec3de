"""Counts, gates and names that any page can show."""

from decimal import Decimal

import pytest

from cmgcli.errors import SettingsError
from cmgcli.rows import Row
from cmgcli.verdict import Tally, limits_of, printable


def tally(readable: int, anomalies: int, unreadable: int = 0, keep: bool = False) -> Tally:
    counted = Tally(keep=keep)
    for i in range(readable):
        counted.add(Row(f"{i}.png", score=float(i), anomalous=int(i < anomalies)))
    for i in range(unreadable):
        counted.add(Row(f"bad{i}.png", error="empty"))
    return counted


@pytest.mark.parametrize(
    ("limit", "readable", "anomalies", "passes"),
    [
        ("0", 3, 0, True),
        ("0", 3, 1, False),
        ("2", 3, 2, True),
        ("2", 3, 3, False),
        ("2%", 50, 1, True),
        ("2%", 50, 2, False),
        ("29%", 100, 29, True),  # 0.29 * 100 is 28.999... in floats
        ("0.1 %", 1000, 1, True),
        ("0.1%", 999, 1, False),
        ("100%", 4, 4, True),
        ("0%", 0, 0, False),  # nothing was judged
        ("100%", 0, 0, False),
    ],
)
def test_the_limit_is_exact(limit, readable, anomalies, passes):
    verdict = tally(readable, anomalies, unreadable=7).verdict(limits_of(max_anomalies=limit))
    assert (verdict.failures == ()) is passes
    assert verdict.gates[0].option == f"--max-anomalies {limit}"


def test_a_failed_gate_says_what_came():
    verdict = tally(4, 2).verdict(limits_of(fail_on_anomaly=True, max_anomalies="2"))
    assert verdict.failures == ("2 of 4 readable images are anomalous, which --fail-on-anomaly does not allow",)
    assert len(verdict.gates) == 2
    assert limits_of() == ()


@pytest.mark.parametrize("text", ["", "x", "-1", "3.5", "3 4", "101%", "%", "2%%", "1e3", "٣", "nan"])
def test_a_limit_that_is_none(text):
    with pytest.raises(SettingsError, match="--max-anomalies: expected a count such as 3 or a share such as 2%"):
        limits_of(max_anomalies=text)


def test_a_share_keeps_its_digits():
    (limit,) = limits_of(max_anomalies="0.10%")
    assert limit.most == Decimal("0.10") and limit.percent


def test_the_sentence_counts():
    assert Tally(keep=False).verdict(()).sentence == "no image was given"
    assert tally(1, 0).verdict(()).sentence == "none of 1 readable images is anomalous"
    assert tally(5, 2, 1).verdict(()).sentence == "2 of 5 readable images are anomalous, 1 could not be read"


def test_rows_are_kept_only_where_asked_for():
    assert tally(3, 1).verdict(()).rows == ()
    verdict = tally(30, 1, 2, keep=True).verdict(())
    assert len(verdict.rows) == 32
    assert [row.score for row in verdict.worst(3)] == [29.0, 28.0, 27.0]


def test_what_a_page_cannot_carry_is_spelled_out():
    assert printable("grün \U0001f600\n.png") == "grün \U0001f600\n.png"
    assert printable("a\x00b\x1b[0m\x7f\x85") == r"a\x00b\x1b[0m\x7f\x85"
    assert printable("caf\udce9 \ud800 \ufffe") == r"caf\xe9 \ud800 \ufffe"
