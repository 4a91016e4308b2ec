"""Paths that users write in options and configurations."""

import os
from pathlib import Path


def expand_path(path: str | Path) -> Path:
    """Replace `~`, `~user` and defined variables such as `$HOME` in a path.

    A shell does this only for words that start with `~`, and not in `KEY=~/value`, `--option=~/value` or in YAML files.
    """
    # Path.expanduser raises an error if the home folder is unknown.
    return Path(os.path.expandvars(os.path.expanduser(path)))  # noqa: PTH111
