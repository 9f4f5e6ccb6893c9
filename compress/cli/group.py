"""The command that holds the others: grouped help, and the nearest name for one that there is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from compress.cli.parameters import nearest


class Group(click.Group):
    """A group that lists its commands under headings."""

    def __init__(self, sections: Mapping[str, Sequence[click.Command]], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._sections = {heading: [str(command.name) for command in found] for heading, found in sections.items()}
        for command in (command for found in sections.values() for command in found):
            self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the sections, which is that in which people need them."""
        return [name for names in self._sections.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.list_commands(ctx)))
        for heading, names in self._sections.items():
            with formatter.section(heading):
                limit = formatter.width - 6 - widest
                formatter.write_dl(
                    [(f"{name:<{widest}}", self.commands[name].get_short_help_str(limit)) for name in names]
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = str(args[0])
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = nearest(name, self.commands)
            hint = f" Did you mean {near!r}?" if near else f" There are {', '.join(self.list_commands(ctx))}."
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)
