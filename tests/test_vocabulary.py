"""The vocabulary of CONTRIBUTING.md: words that must not be used, and rules for the names of functions and constants.

Identifiers are split into words at underscores and capital letters, so `head_start` and `HeadStart` are "head start".
Whole words are compared, in lower case.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PACKAGES = ("featgan", "launch")
OTHER_FOLDERS = ("tests", "scripts", "experiments")
"""Folders with Python files that are not installed."""

OTHER_FILES = ("README.md", "CONTRIBUTING.md", "experiments/README.md", "Makefile", ".ci/run", "mkdocs.yml", "slurm/*")
"""Other files that are checked. CHANGELOG.md is not, because it lists the names of older releases."""

MAX_ONE_WORD_SHARE = 0.08
"""Maximum share of module-level functions whose name is one word."""

EXCERPT_LENGTH = 40
"""Characters shown before and after a banned word."""


@dataclass(frozen=True)
class BannedWord:
    """A regular expression for words that must not be used, the words to use instead, and exceptions."""

    pattern: str
    instead: str
    allowed_after: str = ""
    """The match is allowed if the text before it ends with this expression."""
    allowed_before: str = ""
    """The match is allowed if the text after it starts with this expression."""


BANNED_WORDS = (
    BannedWord(
        "box|boxes",
        "black box, classifier or bounding box",
        # A face rectangle is a "bounding box"; CSS has border-box and box-sizing; rich has Table(box=...).
        allowed_after=r"(black|bounding|face|check|tool)[\s_-]*|border-|X",
        allowed_before="[-=]",
    ),
    BannedWord("witness|witnesses|witnessed|testimony", "second classifier"),
    BannedWord("judge|judges|judged|judgement|judgements", "evaluation classifier, or discriminator output"),
    BannedWord("ancestor|ancestors", "original implementation", allowed_after="frame-"),  # a header of HTTP
    BannedWord("wish|wishes|wished", "target, or request"),
    BannedWord("anew|once more", "again"),
    BannedWord("mend|mends|mended|mending", "repair"),
    BannedWord("told", "receives, conditioned on, or given"),
    BannedWord("hear|hears|heard", "receives, or responds to"),
    BannedWord("obey|obeys|obeyed", "follows"),
    BannedWord("stranger|strangers", "unknown, or other"),
    BannedWord("wholly", "completely"),
    BannedWord("moments", "optimizer state, or mean and covariance", allowed_after=r"weighted\s+"),
    BannedWord("head start", "discriminator warm-up"),
    BannedWord("drawn faces", "synthetic faces"),
    BannedWord("mirrored|mirror image|mirror images", "horizontally flipped, horizontal flip"),
    BannedWord("picture|pictures", "image", allowed_after=r"multi[\s-]"),  # the multi-picture file format
    BannedWord("deviations", "standard deviations", allowed_after=r"standard\s+"),
    BannedWord("so many", "N, or every N steps"),
    BannedWord("goes on", "resumes, or continues"),
    BannedWord("lies in", "is stored in"),
    BannedWord("is no", "is not a", allowed_after=r"there\s+", allowed_before=r"\s+longer\b"),
    BannedWord("stand-in|stand-ins|stand in", "the name of the thing, or fake"),
    BannedWord("made-up|made up", "synthetic, or fake"),
    BannedWord("tint|tints", "uniform color shift", allowed_after="--"),  # a variable of the style sheets
    BannedWord("vote|votes|voted", "agreement of all processes"),
    BannedWord("finding|findings", "conclusion"),
    BannedWord("wanted|asked", "target, requested, or expected"),
    BannedWord("player|players|game|games", "network, trainable network, or objective"),
    BannedWord("grey", "gray"),
    BannedWord("licence|licences", "license"),
    BannedWord(r"\w*colour\w*", "color"),
    BannedWord("centre|centres|centred|centring", "center"),
    BannedWord(r"behaviours?|favour\w*|neighbour\w*|honour\w*|harbour\w*", "the US spelling -or"),
    BannedWord(r"(label|model|travel|level)l(ed|ing)", "the US spelling with one l"),
    BannedWord(r"(anal|paral|cata)ys(e|es|ed|ing)", "the US spelling -yze"),
    BannedWord(r"\w+is(e|es|ed|er|ers|ing|ation|ations)", "the US spelling -ize"),
)  # fmt: skip

NOT_BRITISH = re.compile(
    r"(de|im|un)?(adv|advert|appra|ar|comprom|compr|conc|cru|dem|dev|disgu|enterpr|exerc|expert|franch|improv|lia|no|"
    r"para|po|pra|prec|prem|prom|r|ra|rev|superv|surpr|telev|w)is\w*|\w*wise",
    re.IGNORECASE,
)
"""Words that end like a British spelling but are not."""

ALLOWED_FILES = {
    "featgan/config/renamed_keys.py": "names of release 0.1, which are rejected with the new name",
    "tests/config/test_renamed_keys.py": "the same names",
    "tests/test_vocabulary.py": "the banned words",
}
"""File => why the strings of this file are not checked."""

BANNED_PREFIXES = ("MOST_", "LARGEST_", "FEWEST_", "SMALLEST_", "LEAST_")
"""Use MAX_ or MIN_, or NUM_ for a number of things."""

WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_")

COMPILED_WORDS = [
    (
        word,
        re.compile(rf"\b({word.pattern.replace(' ', chr(92) + 's+')})\b", re.IGNORECASE),
        re.compile(rf"(?:{word.allowed_after})\Z", re.IGNORECASE) if word.allowed_after else None,
        re.compile(word.allowed_before, re.IGNORECASE) if word.allowed_before else None,
    )
    for word in BANNED_WORDS
]


@dataclass(frozen=True)
class Text:
    """A text to check, and the line where it starts."""

    path: Path
    line: int
    content: str


def split_words(text: str) -> str:
    """Separate the words of identifiers in a text by spaces; the number of lines does not change."""
    return WORD_BOUNDARY.sub(" ", text)


def find_banned_words(text: Text) -> list[str]:
    """Return a message with file, line, word and replacement for each banned word in a text."""
    words, messages = split_words(text.content), []
    for word, pattern, allowed_after, allowed_before in COMPILED_WORDS:
        for match in pattern.finditer(words):
            start, end = match.span()
            if (allowed_after and allowed_after.search(words[:start])) or NOT_BRITISH.fullmatch(match[0]):
                continue
            if allowed_before and allowed_before.match(words[end:]):
                continue
            line = text.line + words.count("\n", 0, start)
            excerpt = " ".join(words[max(0, start - EXCERPT_LENGTH) : end + EXCERPT_LENGTH].split())
            location = f"{text.path.relative_to(ROOT)}:{line}"
            messages.append(f"{location}: {match[0]!r} in {excerpt!r}; use {word.instead}")
    return messages


def python_files(*folders: str) -> list[Path]:
    """Return the Python files of folders."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def parse_file(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def defined_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and name of every function, class, argument, attribute and variable defined in a file."""
    for node in ast.walk(parse_file(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.lineno, node.name


def python_texts(path: Path) -> Iterator[Text]:
    """Yield the string literals, docstrings and comments of a Python file."""
    for node in ast.walk(parse_file(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(path, node.lineno, node.value)
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield Text(path, token.start[0], token.string)


def document_files() -> list[Path]:
    """Return the documentation, the templates with their style sheets and scripts, configurations and shell scripts."""
    pages = [path for pattern in OTHER_FILES for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    pages += sorted((ROOT / "docs").rglob("*.md"))
    web_files = [
        path
        for package in PACKAGES
        for pattern in ("*.j2", "*.css", "*.js")
        for path in sorted((ROOT / package).rglob(pattern))
    ]
    return [*pages, *web_files, *sorted((ROOT / "configs").rglob("*.yaml"))]


def module_functions() -> list[tuple[Path, str]]:
    """Return the file and name of every module-level function of featgan and launch."""
    return [
        (path, node.name)
        for path in python_files(*PACKAGES)
        for node in parse_file(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_identifiers_have_no_banned_words() -> None:
    texts = {Text(path, *name) for path in python_files(*PACKAGES, *OTHER_FOLDERS) for name in defined_names(path)}
    ordered = sorted(texts, key=lambda text: (text.path, text.line, text.content))
    messages = [message for text in ordered for message in find_banned_words(text)]
    assert not messages, f"{len(messages)} banned words in identifiers:\n" + "\n".join(messages)


def test_strings_and_comments_have_no_banned_words() -> None:
    paths = python_files(*PACKAGES, *OTHER_FOLDERS)
    files = [path for path in paths if path.relative_to(ROOT).as_posix() not in ALLOWED_FILES]
    messages = [message for path in files for text in python_texts(path) for message in find_banned_words(text)]
    assert not messages, f"{len(messages)} banned words in strings and comments:\n" + "\n".join(messages)


def test_documents_templates_and_configurations_have_no_banned_words() -> None:
    texts = [Text(path, 1, path.read_text(encoding="utf-8")) for path in document_files()]
    messages = [message for text in texts for message in find_banned_words(text)]
    assert not messages, f"{len(messages)} banned words in documents:\n" + "\n".join(messages)


def test_few_module_level_functions_have_one_word_names() -> None:
    functions = module_functions()
    one_word = [(path, name) for path, name in functions if "_" not in name.strip("_")]
    listed = "\n".join(f"{path.relative_to(ROOT)}: {name}" for path, name in one_word)
    share = len(one_word) / len(functions)
    assert share <= MAX_ONE_WORD_SHARE, f"{len(one_word)} of {len(functions)} functions ({share:.1%}):\n{listed}"


def test_constants_have_no_banned_prefixes() -> None:
    messages = [
        f"{path.relative_to(ROOT)}:{line}: {name}; use MAX_, MIN_ or NUM_"
        for path in python_files(*PACKAGES, *OTHER_FOLDERS)
        for line, name in defined_names(path)
        if name.startswith(BANNED_PREFIXES)
    ]
    assert not messages, "\n" + "\n".join(messages)


@pytest.mark.parametrize(
    "text",
    [
        "the box says", "open_box", "boxes", "HeadStart", "head_start", "deviations", "is no file", "so\n  many",
        "colours", "BoxIdentity", "labelled", "centred", "optimiser", "standardised",
        "summarises", "the data analysed", "generalisation", "stand-in", "STAND_IN", "tint", "findings", "wanted",
    ],
)  # fmt: skip
def test_banned_words_are_found(text: str) -> None:
    assert find_banned_words(Text(Path(__file__), 1, text))


@pytest.mark.parametrize(
    "text",
    [
        "black box", "black-box", "blackbox", "a bounding\n    box", "face_box", "checkbox", "bbox", "Xbox", "toolbox",
        "box-sizing", "Table(box=SIMPLE)", "standard\n    deviations", "is no longer", "there is no file", "otherwise",
        "noise", "precise", "raised", "rising", "supervised", "elementwise", "comprises", "advertised", "for a moment",
        "border-box", "denoised", "imprecise", "frame-ancestors", "var(--tint)",
    ],
)  # fmt: skip
def test_standard_words_are_allowed(text: str) -> None:
    assert not find_banned_words(Text(Path(__file__), 1, text))
