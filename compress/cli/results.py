"""The results of a run and of a benchmark, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compress.cli.console import say, show_table
from compress.measurement import Measurement
from compress.reporting import Report, latency_table, variant_entries, variant_table, verdict_sentences

NOT_MET = 3


def show_report(report: Report, out: Path) -> int:
    """Print what a run found; the exit status that says whether it passed."""
    plain = report.to_dict()
    for line in (*plain["notes"], *(f"{s['stage']} skipped: {s['skipped']}" for s in plain["stages"] if s["skipped"])):
        say(line)
    table = variant_table(plain["variants"], plain["shipped"])
    show_table(table.columns, table.rows, table.mark)
    absent = {(t["provider"], t["status"]) for v in plain["variants"] for t in v["latency"] if t["status"] != "ok"}
    for provider, status in sorted(absent):
        say(f"{provider}: {status}")
    say("")
    for sentence in verdict_sentences(plain):
        say(sentence)
    say(f"{out / 'model.onnx'}, {out / 'report.html'}")
    return 0 if report.verdict.passed else NOT_MET


def show_measurements(measurements: Sequence[Measurement]) -> None:
    """Print what a benchmark found."""
    entries = variant_entries(measurements, Path())
    for table in (variant_table(entries), latency_table(entries)):
        show_table(table.columns, table.rows)
        say("")
