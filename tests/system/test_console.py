"""Data are printed as they are, and never control the terminal."""

import ast
import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.table import Table

from featgan.errors import UserError
from featgan.system import progress
from featgan.system.console import PlainConsole
from featgan.system.os_errors import user_error_message
from featgan.system.plain_text import escape_control_characters, format_one_line

ROOT = Path(__file__).parent.parent.parent


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


PACKAGES = [path for folder in ("featgan", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]

PRINTING_MODULES = {
    "featgan/bench/timing.py": "processes of a benchmark exchange numbers",
    "featgan/config/docs.py": "writes a page of the documentation",
    "featgan/config/metric_docs.py": "writes a page of the documentation",
    "featgan/system/plain_text.py": "escapes control characters",
    "launch/requeue.py": "prints a word for the job script",
}
"""Module => why it may call print."""


def called_names(path: Path) -> set[str]:
    """Return the names of the functions that a file calls: `print`, `click.echo` or `Text.from_markup`."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {ast.unparse(function) for function in calls if isinstance(function, ast.Name | ast.Attribute)}


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_data_are_printed_by_the_plain_console_only(path: Path) -> None:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text()
    if name != "featgan/system/console.py":
        for module in ("from rich.console", "import rich", "from rich import", "from rich.markup"):
            assert module not in text, f"{name}: use featgan.system.console.PlainConsole instead of {module}"
    forbidden = {"click.echo", "click.secho", "Text.from_markup", "Text.from_ansi"}
    if name not in PRINTING_MODULES:
        forbidden |= {"print", "sys.stdout.write", "sys.stderr.write"}
    assert not called_names(path) & forbidden, f"{name}: use featgan.system.plain_text.print_line or PlainConsole"


def test_progress_bar_shows_texts_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(progress, "console", PlainConsole(file=output, width=200))
    with progress.progress_bar("[/a] :smile:", 1, "[b]") as bar:
        bar.set_note("[red]\x1b[2J")
    assert "[/a] :smile:" in output.getvalue() and "[b]" in output.getvalue() and "\x1b[2J" not in output.getvalue()


def test_log_messages_are_shown_literally(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("featgan.test").warning("[/a] :smile: \x1b[2J\x9b")
    assert capsys.readouterr().err == "warning: [/a] :smile: \\x1b[2J\\x9b\n"


def test_error_with_a_line_break_in_a_file_name_is_one_line() -> None:
    error = UserError("shards/a\nb\x1b[31m: missing; copy it")
    assert user_error_message(error) == "shards/a\\nb\\x1b[31m: missing; copy it"


def test_class_names_are_printed_literally_by_pack_and_info(tmp_path: Path) -> None:
    names = ["[bold]b", ":smile:", "\x1b[31mred", "[link=x]y"]
    for index, name in enumerate(names):
        for split in ("train", "val"):
            (tmp_path / "faces" / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (20 * index, 0, 0)).save(tmp_path / "faces" / split / name / "1.png")
    shards = tmp_path / "shards"
    packed = run_featgan("pack", "folder", str(tmp_path / "faces"), "--out", str(shards), "--image-size", "16")
    manifest = (shards / "manifest.json").read_text()
    (shards / "manifest.json").write_text(manifest.replace("[bold]b", "[/a]"))
    described = run_featgan("info", str(shards))
    for output, first_name in ((packed, "[bold]b"), (described, "[/a]")):
        shown_names = [escape_control_characters(name) for name in (first_name, *names[1:])]
        assert all(name in output for name in shown_names) and "\x1b" not in output, output


def run_featgan(*arguments: str) -> str:
    """Run a command and return its standard output."""
    command = [sys.executable, "-m", "featgan", *arguments]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout
