"""compress doctor."""

from __future__ import annotations

import click

from compress.cli.console import emit, say
from compress.cli.options import json_option


@click.command(short_help="Versions, CPU, providers, known troubles.")
@json_option()
def doctor(as_json: bool) -> int:
    """Print versions, CPU, execution providers, and each known trouble with its mend.

    A provider runs if a tiny model ran on it and answered right.

    \b
    Examples:
      compress doctor
      compress doctor --json > machine.json
    """
    from compress.measurement.environment import available_threads, environment, provider_states, troubles

    facts, states, found = environment(available_threads()), provider_states(), troubles()
    if as_json:
        emit({"environment": facts, "providers": states, "troubles": found})
        return 0
    for key, value in facts.items():
        say(f"{key:<16}{', '.join(value) if isinstance(value, list | tuple) else value}")
    say("\nproviders")
    for state in states:
        say(f"  {state.key:<14}{state.told}" + (f"\n{'':<16}{state.mend}" if state.mend else ""))
    say("")
    if not found:
        say("No known trouble.")
    for trouble in found:
        say(f"- {trouble.what}\n  {trouble.mend}")
    return 0
