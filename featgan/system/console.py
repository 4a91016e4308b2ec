"""A rich console that prints data as it is: no markup, no emoji codes, no highlighting, no control characters."""

from typing import Any

from rich.console import Console
from rich.text import Text

from featgan.system.plain_text import escape_control_characters


class PlainConsole(Console):
    """A console for tables and messages that contain data: names of classes, files and metrics."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override] # the same keywords
        """Convert a string, also of a table cell, to a text without control characters."""
        return super().render_str(escape_control_characters(text), **options)
