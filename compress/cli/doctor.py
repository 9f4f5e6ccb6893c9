"""compress doctor."""

from __future__ import annotations

import click

from compress.cli.console import say


@click.command(short_help="Versions, CPU, providers, known troubles.")
def doctor() -> int:
    """Print versions, CPU, usable execution providers, and each known trouble with its mend.

    \b
    Example:
      compress doctor
    """
    from compress.measurement.environment import available_threads, environment, providers, troubles

    for key, value in environment(available_threads()).items():
        say(f"{key:<16}{', '.join(value) if isinstance(value, list | tuple) else value}")
    say(f"{'providers':<16}{', '.join(providers())}")
    found = troubles()
    say("")
    if not found:
        say("No known trouble.")
    for trouble in found:
        say(f"- {trouble.what}\n  {trouble.mend}")
    return 0
