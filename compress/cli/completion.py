"""compress completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from compress.cli.console import say
from compress.cli.parameters import OneOf

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_COMPRESS_COMPLETE"  # how the script asks the command: click's own protocol


@click.command(short_help="Completion of commands, options and values, for your shell.")
@click.argument("shell", type=OneOf(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print the script that completes commands, options and values in SHELL: bash (4.4 or later), zsh or fish.

    \b
    Examples:
      echo 'eval "$(compress completion bash)"' >> ~/.bashrc
      echo 'eval "$(compress completion zsh)"' >> ~/.zshrc
      compress completion fish > ~/.config/fish/completions/compress.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    # Not source(): it looks for the shell's version, and complains where that shell is not installed.
    made = found(ctx.find_root().command, {}, "compress", VARIABLE)
    say(made.source_template % made.source_vars())
    return 0
