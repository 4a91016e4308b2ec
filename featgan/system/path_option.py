"""The type of path options and arguments on the command line."""

from typing import Any

import click

from featgan.system.user_paths import expand_path


class UserPath(click.Path):
    """A path in which `~` and variables such as `$HOME` are replaced."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expand_path(value), param, ctx)
