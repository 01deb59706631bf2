"""Groups of commands: what the user misspells, and what a noun alone does."""

from __future__ import annotations

import click

from templatekit.errors import nearest


class Group(click.Group):
    """Answers an unknown command with the nearest ones."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name; raises `click.UsageError` where there is none."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(f"no command named {name!r}; {nearest(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


class Noun(Group):
    """A group whose bare name, or name with options, lists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `list` in front where no command stands."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)
