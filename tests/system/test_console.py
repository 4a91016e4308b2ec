"""Data are printed as they are, and never control the terminal."""

import io

import pytest
from rich.table import Table

from featgan.system.console import PlainConsole
from featgan.system.plain_text import escape_control_characters, format_one_line


@pytest.mark.parametrize("name", ["[/a]", "[bold]x", ":smile:", "[link=file:///]y[/link]", "[red]", "\\[a]", "1.5 x"])
def test_names_that_look_like_markup_are_printed_literally(name: str) -> None:
    output = io.StringIO()
    console = PlainConsole(file=output, force_terminal=True, width=200)
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    console.print(table)
    console.print(name)
    assert output.getvalue().count(name) == 5


def test_control_characters_are_escaped() -> None:
    output = io.StringIO()
    table = Table("\x1b[31mred")
    table.add_row("\x07\x9b2J\x85\udc80\u202e")
    PlainConsole(file=output, width=200).print(table, "a\tb\n\x1b]0;title\x07")
    assert not set(output.getvalue()) & set("\x1b\x07\x9b\x85\udc80\u202e")
    assert "\\x1b[31mred" in output.getvalue() and "\\udc80" in output.getvalue()


def test_lines_keep_their_text() -> None:
    assert escape_control_characters("é😀 [/a]\n\tb") == "é😀 [/a]\n\tb"
    assert format_one_line("a\nb\r\x1b") == "a\\nb\\r\\x1b"
