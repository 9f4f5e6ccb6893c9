"""The gate's lines as JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from compress.reporting.gate import Line
from compress.reporting.junit import junit_xml

MET = Line("max-drop", 0.01, 0.004, 0.001, 0.007, met=True, warning=False, sentence="max-drop 0.01: met.")
WARNED = Line("min-speedup", 2.0, 2.1, 1.9, 2.3, met=True, warning=True, sentence="min-speedup 2: met, but.")
MISSED = Line("max-bytes", 10, 11, None, None, met=False, warning=False, sentence='max-bytes <10> & "not" met.')

# What junit-10.xsd of Jenkins' xUnit plugin allows: element -> (required attributes, all attributes, children).
SHAPE = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": ({"name"}, {"name", "time", "classname", "group"}, {"skipped", "error", "failure", "system-out"}),
    "failure": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def conforms(element: ET.Element) -> bool:
    required, allowed, children = SHAPE[element.tag]
    own = set(element.attrib)
    return required <= own <= allowed and all(child.tag in children and conforms(child) for child in element)


def test_the_xml_has_the_shape_that_build_servers_read() -> None:
    suites = ET.fromstring(junit_xml((MET, WARNED, MISSED), "compressed"))
    assert suites.tag == "testsuites"
    assert conforms(suites)
    (suite,) = suites
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "0",
    }
    assert [case.get("name") for case in suite] == ["max-drop", "min-speedup", "max-bytes"]
    assert {case.get("classname") for case in suite} == {"compress check compressed"}


def test_only_what_is_not_met_is_a_failure_and_says_why_twice() -> None:
    met, warned, missed = ET.fromstring(junit_xml((MET, WARNED, MISSED), "run"))[0]
    assert met.find("failure") is None
    assert warned.find("failure") is None
    failure = missed.find("failure")
    assert failure is not None
    assert failure.get("message") == failure.text == MISSED.sentence


def test_a_warning_passes_and_says_so_in_its_output() -> None:
    _, warned, _ = ET.fromstring(junit_xml((MET, WARNED, MISSED), "run"))[0]
    assert warned.findtext("system-out") == "warning: min-speedup 2: met, but."


@given(st.text())
def test_no_text_breaks_the_xml(text: str) -> None:
    line = Line("max-drop", None, None, None, None, met=False, warning=False, sentence=text)
    (case,) = ET.fromstring(junit_xml((line,), text))[0]
    assert conforms(case)


def test_the_same_lines_give_the_same_bytes() -> None:
    assert junit_xml((MET, MISSED), "run") == junit_xml((MET, MISSED), "run")
