"""Check that the prose of the documentation consists of short sentences.

    python scripts/check_sentences.py            # README.md, CONTRIBUTING.md and docs/
    python scripts/check_sentences.py FILE...    # other Markdown files

For each file the 90th percentile of the sentence length must not exceed `MAX_WORDS`. Code blocks, tables, headings,
front matter, images and HTML are not prose.
"""

import re
import sys
from dataclasses import dataclass
from math import ceil
from pathlib import Path

ROOT = Path(__file__).parent.parent

MAX_WORDS = 30
"""Upper bound for the 90th percentile of the number of words in a sentence."""

NUM_SHOWN = 5
"""Longest sentences that are printed for a file that fails."""

FENCE = re.compile(r"\s*(```|~~~)")
NOT_PROSE = re.compile(r"\s*(\||#|<|:::|!\[[^\]]*\]\([^)]*\)\s*$|\[[^\]]+\]:|!!!|-{3,}\s*$)")
LIST_ITEM = re.compile(r"\s*([-*+]|\d+\.)\s+")
QUOTE = re.compile(r"\s*>\s?")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”)*_]*\s+(?=[\"'“(*_`\[]*(?:[A-Z0-9`]|featgan))")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|et al|etc|vs|cf|Fig|Eq|No)\.")


@dataclass(frozen=True)
class Sentence:
    """A sentence with the line it starts on."""

    line: int
    text: str

    @property
    def num_words(self) -> int:
        """Number of words; a code span and a link count as the words they show, code as one word."""
        text = re.sub(r"`[^`]*`", "code", self.text)
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
        return len([word for word in text.split() if re.search(r"\w", word)])


def split_paragraphs(markdown: str) -> list[list[tuple[int, str]]]:
    """Split Markdown into its paragraphs and list items, each a list of (line number, text)."""
    blocks: list[list[tuple[int, str]]] = [[]]
    is_code = is_front_matter = in_list = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if number == 1 and line.strip() == "---":
            is_front_matter = True
            continue
        if is_front_matter:
            is_front_matter = line.strip() != "---"
            continue
        if FENCE.match(line):
            is_code = not is_code
            blocks.append([])
            continue
        text = QUOTE.sub("", line, count=1)
        item = LIST_ITEM.match(text)
        is_indented_code = text.startswith("    ") and not blocks[-1] and not in_list
        if is_code or is_indented_code or not text.strip() or (not item and NOT_PROSE.match(text)):
            blocks.append([])
            in_list = in_list and (not text.strip() or text.startswith(" "))
            continue
        if item:
            blocks.append([])
            in_list = True
            text = text[item.end() :]
        elif not blocks[-1] and not text.startswith(" "):
            in_list = False
        blocks[-1].append((number, text.strip()))
    return [lines for lines in blocks if lines]


def split_sentences(markdown: str) -> list[Sentence]:
    """Split the prose of a Markdown text into sentences."""
    result: list[Sentence] = []
    for lines in split_paragraphs(markdown):
        text = " ".join(line for _, line in lines)
        starts = [0]
        for _, line in lines:
            starts.append(starts[-1] + len(line) + 1)
        # The full stop of an abbreviation is hidden while the text is split.
        hidden = ABBREVIATION.sub(lambda match: match[0][:-1] + "\0", text)
        position = 0
        for fragment in SENTENCE_END.split(hidden):
            position = hidden.index(fragment, position)
            index = max(index for index, start in enumerate(starts[:-1]) if start <= position)
            result.append(Sentence(lines[index][0], fragment.replace("\0", ".")))
            position += len(fragment)
    return [sentence for sentence in result if sentence.num_words]


def percentile(values: list[int], percent: float) -> int:
    """The smallest value that is at least as large as `percent` percent of the values."""
    return sorted(values)[ceil(percent / 100 * len(values)) - 1] if values else 0


def documentation_files() -> list[Path]:
    """The Markdown files that are checked by default."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main(arguments: list[str]) -> int:
    """Print a line for each file and the longest sentences of files that fail; return the exit status."""
    has_failed = False
    for path in [Path(argument) for argument in arguments] or documentation_files():
        file_sentences = split_sentences(path.read_text(encoding="utf-8"))
        lengths = [sentence.num_words for sentence in file_sentences]
        high = percentile(lengths, 90)
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        print(
            f"{name}: {len(file_sentences)} sentences, median {percentile(lengths, 50)} words, 90th percentile {high}"
        )
        if high > MAX_WORDS:
            has_failed = True
            print(f"{name}: the 90th percentile is above {MAX_WORDS} words; split the longest sentences:")
            for sentence in sorted(file_sentences, key=lambda sentence: sentence.num_words, reverse=True)[:NUM_SHOWN]:
                print(f"  {name}:{sentence.line}: {sentence.num_words} words: {sentence.text[:90]}...")
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
