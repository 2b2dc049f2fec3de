"""A scoring run as a JUnit XML file, which CI systems show as tests: an image is a test case."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from datetime import datetime
from pathlib import Path

from cmgcli.errors import OutputError
from cmgcli.files import write_whole
from cmgcli.rows import Row
from cmgcli.verdict import Gate, Threshold, Verdict, Why, printable

SUITE = "cmg score"


def write_junit(verdict: Verdict, path: Path, *, threshold: Threshold, why: Why, began: datetime, seconds: float) -> None:
    """Write the file under a temporary name, then rename it.

    An image's `classname` is its directory, its `name` its file name; an anomalous image is a failure, an unreadable one an
    error. Each gate is a test case of the class `gates`. Characters that XML cannot carry are spelled out (`printable`).

    Args:
        threshold: the score above which a row's image is anomalous. why: what decided, in a sentence.
        began, seconds: when the run began, and how long it took.
    Raises:
        OutputError: the file cannot be written.
    """
    suite = ET.Element("testsuite", name=SUITE, errors=str(verdict.unreadable), skipped="0", timestamp=began.isoformat(timespec="seconds"))
    suite.extend([_image(row, threshold, why) for row in verdict.rows])
    suite.extend([_gate(gate) for gate in verdict.gates])
    failures = verdict.anomalies + len(verdict.failures)
    root = ET.Element("testsuites", name=SUITE, errors=str(verdict.unreadable))
    for element in (root, suite):
        element.set("tests", str(len(suite)))
        element.set("failures", str(failures))
        element.set("time", f"{seconds:.3f}")
    root.append(suite)
    ET.indent(root)
    try:
        write_whole(path, ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror}); choose another --junit") from error


def _image(row: Row, threshold: Threshold, why: Why) -> ET.Element:
    directory, name = os.path.split(row.file)
    case = ET.Element("testcase", classname=printable(directory) or ".", name=printable(name))
    if row.error:
        ET.SubElement(case, "error", type="unreadable", message=printable(row.error))
    elif row.anomalous:
        message = f"score {row.score:.6g} is above the threshold {threshold(row):.6g}, p-value {row.p_value:.3g}"
        failure = ET.SubElement(case, "failure", type="anomaly", message=message)
        failure.text = printable(f"{row.file}\ncaption: {row.caption}\n{_parts(row)}\n{why(row)}")
    return case


def _parts(row: Row) -> str:
    parts = {"image score": row.image_score, "patch score": row.patch_score, "head score": row.head_score, "match": row.match, "kept": row.kept}
    return ", ".join(f"{name} {value:.6g}" for name, value in parts.items() if value is not None)


def _gate(gate: Gate) -> ET.Element:
    case = ET.Element("testcase", classname="gates", name=gate.option)
    if gate.failure:
        ET.SubElement(case, "failure", type="gate", message=gate.failure)
    return case

