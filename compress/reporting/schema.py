"""What report.json holds, as report.schema.json (JSON Schema 2020-12) says it: checked when written and when read."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from compress.errors import ReportError

SCHEMA = 1  # of what this version writes
FILE_NAME = "report.schema.json"
_LONGEST = 160  # characters of a message: jsonschema's hold the whole value

Schema = Mapping[str, Any]


@functools.cache
def schema() -> Schema:
    """report.schema.json."""
    stored: Schema = json.loads(resources.files("compress.reporting").joinpath(FILE_NAME).read_bytes())
    return stored


def validate(report: Mapping[str, Any]) -> None:
    """Check the plain dict of report.json against the schema.

    Raises:
        ReportError: in one line, with the path to the first thing that does not fit.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    version = report.get("schema") if isinstance(report, Mapping) else None
    if isinstance(version, int) and version > SCHEMA:
        raise ReportError(
            f"the report has schema {version}, and this version of compress reads up to {SCHEMA}. Update compress."
        )
    problem = best_match(Draft202012Validator(dict(schema())).iter_errors(report))
    if problem is not None:
        message = problem.message if len(problem.message) <= _LONGEST else f"{problem.message[:_LONGEST]}…"
        raise ReportError(f"the report does not fit {FILE_NAME} at {problem.json_path}: {message}")
    _check_names(report)


def _check_names(report: Mapping[str, Any]) -> None:
    """What a schema cannot say: that entries which refer to each other do."""
    variants = report["variants"]
    if report["shipped"] not in [variant["name"] for variant in variants]:
        raise ReportError(f"the report ships {report['shipped']!r}, which is none of its variants.")
    odd = next((v["name"] for v in variants if len(v["latency"]) != len(variants[0]["latency"])), None)
    if odd is not None:
        raise ReportError(f"the report has not as many latencies of {odd!r} as of {variants[0]['name']!r}.")


def read(text: str | bytes, where: object = "report.json") -> dict[str, Any]:
    """The plain dict of a report.json, valid, and with every key that later versions added.

    Args:
        text: Its content.
        where: Named in errors.

    Raises:
        ReportError: it is no JSON, not a report, or of a newer version.
    """
    try:
        report = json.loads(text, parse_constant=_no_number)
        validate(report)
    except ValueError as error:
        raise ReportError(f"{where} is not valid JSON: {error}. Run the pipeline again.") from error
    except ReportError as error:
        raise ReportError(f"{where}: {error}") from error
    filled: dict[str, Any] = _filled(report, schema())
    return filled


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _filled(value: Any, rule: Schema) -> Any:
    """A valid value with the defaults of the keys that it lacks, at every depth."""
    rule = _resolved(rule, value)
    if isinstance(value, list):
        return [_filled(item, rule.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    known, others = rule.get("properties", {}), rule.get("additionalProperties")
    other = others if isinstance(others, Mapping) else {}
    own = {key: _filled(item, known.get(key, other)) for key, item in value.items()}
    return own | {key: each["default"] for key, each in known.items() if key not in own and "default" in each}


def _resolved(rule: Schema, value: Any) -> Schema:
    """The rule that a value falls under: behind a reference, and behind "this or null"."""
    if "anyOf" in rule and value is not None:
        rule = next(each for each in rule["anyOf"] if each.get("type") != "null")
    if "$ref" in rule:
        definition: Schema = schema()["$defs"][rule["$ref"].rpartition("/")[2]]
        return definition
    return rule
