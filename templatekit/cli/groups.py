"""Command groups that suggest a command after a misspelling, or run `list` if no command is given."""

from __future__ import annotations

import click

from templatekit.errors import nearest


class SuggestingGroup(click.Group):
    """A group that answers an unknown command with similar ones."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of that name; raise `click.UsageError` where there is none."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(f"no command named {name!r}; {nearest(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


class ListingGroup(SuggestingGroup):
    """A group that runs its command `list` if none is given: `templatekit templates` lists the templates."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `list` where the arguments do not start with a command."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)
