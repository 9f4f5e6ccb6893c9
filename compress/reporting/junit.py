"""The lines of a gate as JUnit XML, which every build server reads: one testcase a limit.

Held to what the readers have in common: the schema of Jenkins' xUnit plugin (junit-10.xsd), which GitLab and Azure
Pipelines read too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from compress.reporting.gate import Line

# What XML 1.0 has no form for, not even escaped: a name from elsewhere must not break the file.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(lines: Sequence[Line], run: str) -> bytes:
    """The lines as a test suite.

    A line that is not met is a failure. A warning passes, and says so in its output, since JUnit has no word for it.

    Args:
        lines: Of `compress.reporting.gate.check`.
        run: The run directory, as the user gave it: it names the class of the test cases.
    """
    failures = str(sum(not line.met for line in lines))
    counts = {"tests": str(len(lines)), "failures": failures, "errors": "0"}
    suites = ET.Element("testsuites", {"name": "compress check", **counts})
    suite = ET.SubElement(suites, "testsuite", {"name": "compress check", **counts, "skipped": "0"})
    for line in lines:
        suite.append(_testcase(line, run))
    ET.indent(suites)
    document: bytes = ET.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _testcase(line: Line, run: str) -> ET.Element:
    sentence = _allowed(line.sentence)
    case = ET.Element("testcase", {"classname": _allowed(f"compress check {run}"), "name": line.name, "time": "0"})
    if not line.met:
        failure = ET.SubElement(case, "failure", {"type": "limit not met", "message": sentence})
        failure.text = sentence
    output = ET.SubElement(case, "system-out")
    output.text = f"warning: {sentence}" if line.warning else sentence
    return case


def _allowed(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
