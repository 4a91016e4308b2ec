"""The documentation has short sentences, valid links, a complete navigation and one version number."""

import re
from pathlib import Path

import pytest
import yaml

from featgan import __version__
from scripts import check_files, check_sentences, generate_cli_docs

ROOT = Path(__file__).parent.parent

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

MAX_README_LINES = 120

MAX_LINE_LENGTH = 120
"""Outside tables and code blocks."""


def relative_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def heading_anchors(markdown: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub and mkdocs build them."""
    titles = re.findall(r"^#+\s+(.*?)\s*$", re.sub(r"```.*?```", "", markdown, flags=re.S), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("path", check_sentences.documentation_files(), ids=relative_name)
def test_sentences_are_short(path: Path) -> None:
    assert check_sentences.main([str(path)]) == 0


@pytest.mark.parametrize("path", PAGES, ids=relative_name)
def test_lines_are_short(path: Path) -> None:
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        is_code ^= line.lstrip().startswith("```")
        if not is_code and not line.startswith("|"):
            assert len(line) <= MAX_LINE_LENGTH, f"{path}:{number}: {len(line)} characters"


@pytest.mark.parametrize("path", PAGES, ids=relative_name)
def test_links_between_pages_and_images_exist(path: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", path.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path}: {link} does not exist"
        if anchor:
            assert anchor in heading_anchors(target.read_text(encoding="utf-8")), f"{path}: {link} has no such heading"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_navigation_lists_every_page_once() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = re.findall(r"[\w/-]+\.md", str(navigation))
    pages = [str(path.relative_to(ROOT / "docs")) for path in sorted((ROOT / "docs").rglob("*.md"))]
    assert sorted(listed) == pages


def test_readme_links_every_guide() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    generated = {"docs/index.md", "docs/cli.md", "docs/launch.md"}
    pages = {relative_name(path) for path in (ROOT / "docs").rglob("*.md")}
    assert pages - generated <= linked


def test_changelog_and_citation_have_the_version_of_the_package() -> None:
    newest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest is not None
    assert newest[1] == str(citation["version"]) == __version__


@pytest.mark.parametrize("file_name", generate_cli_docs.PAGES)
def test_command_line_pages_are_up_to_date(file_name: str) -> None:
    page = (ROOT / "docs" / file_name).read_text(encoding="utf-8")
    expected = generate_cli_docs.build_page(*generate_cli_docs.PAGES[file_name])
    assert page == expected, "run: python scripts/generate_cli_docs.py"


def test_only_prose_is_split_into_sentences() -> None:
    markdown = """---
title: front matter
---
# A heading

First sentence, with `some code` and a
[link](page.md). featgan starts the second one, e.g. here.

    indented code. It is not prose.

```
fenced code. It is not prose.
```

| a table | is skipped |
|---|---|

- An item. With two sentences
  over two lines.

![An image](image.png)
"""
    lengths = [(sentence.line, sentence.num_words) for sentence in check_sentences.split_sentences(markdown)]
    assert lengths == [(6, 7), (7, 7), (18, 2), (18, 6)]


def test_long_sentences_fail_with_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    path.write_text("Short.\n\n" + " ".join(["word"] * (check_sentences.MAX_WORDS + 1)) + ".\n")
    assert check_sentences.main([str(path)]) == 1
    assert f"{path}:3: {check_sentences.MAX_WORDS + 1} words" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"text\n", None),
        (b"text", "exactly one newline"),
        (b"text\n\n", "exactly one newline"),
        (b"text \n", ":1: trailing whitespace"),
        (b"\0" * (check_files.MAX_BYTES + 1), "the limit is"),
    ],
)
def test_files_are_checked(tmp_path: Path, content: bytes, problem: str | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    messages = check_files.find_problems(path)
    assert len(messages) == (problem is not None)
    assert all(problem in line for line in messages if problem)
