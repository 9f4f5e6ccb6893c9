"""The results of a run and of a benchmark, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compress.cli.console import emit, say, show_table
from compress.measurement import Measurement
from compress.reporting import Report, latency_table, variant_entries, variant_table, verdict_sentences
from compress.reporting.tables import absences, limit_table, memory_table, size_table
from compress.values import StageRecord

NOT_MET = 3


def show_report(report: Report, out: Path, as_json: bool = False) -> int:
    """Print what a run found; the exit status that says whether it passed."""
    plain = report.to_dict()
    if as_json:
        emit(plain)
        return 0 if report.verdict.passed else NOT_MET
    for line in (*plain["notes"], *(f"{s['stage']} skipped: {s['skipped']}" for s in plain["stages"] if s["skipped"])):
        say(line)
    table = variant_table(plain["variants"], plain["shipped"])
    show_table(table.columns, table.rows, table.mark)
    for line in absences(plain):
        say(line)
    say("")
    for sentence in verdict_sentences(plain):
        say(sentence)
    say(f"{out / 'model.onnx'}, {out / 'report.html'}")
    return 0 if report.verdict.passed else NOT_MET


def show_measurements(measurements: Sequence[Measurement], record: StageRecord) -> None:
    """Print what a benchmark found, and what is to be known of it."""
    entries = variant_entries(measurements, Path())
    found = {"variants": entries, "shipped": None}
    latencies = (latency_table(entries), memory_table(found))
    for table in (variant_table(entries), *latencies, size_table(found), limit_table(found)):
        if table is not None:
            show_table(table.columns, table.rows)
            say("")
    for note in record.notes:
        say(note)
