"""The types of paths and URLs in options and arguments of the command line."""

from typing import Any

import click

from featgan.system.locations import Location
from featgan.system.user_paths import expand_path


class UserPath(click.Path):
    """A path in which `~` and variables such as `$HOME` are replaced."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expand_path(value), param, ctx)


class UserLocation(click.ParamType[Location]):
    """A path, in which `~` and variables are replaced, or a URL."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        if isinstance(value, Location):
            return value
        location = Location.parse(value)
        return location if location.is_remote else Location.from_path(expand_path(location.path))
