"""The sentences of the report: they are complete, short and in use."""

import re
import string
from pathlib import Path

import pytest

from featgan import report
from featgan.report.analysis.visibility import MAX_LOCATIONS
from featgan.report.edits.registry import SWEEP_BUILDERS
from featgan.report.sentences import (
    LOCATIONS,
    METRIC_DESCRIPTIONS,
    RELIABILITY_LABELS,
    SECTION_TEXTS,
    SENTENCES,
    SHORT_LIMITATIONS,
    SWEEP_NOTES,
    SWEEP_SUMMARIES,
    fill_sentence,
)

MAX_WORDS = 30
LABELS = {"component_with_share", "numbered_components"}
"""Entries that are inserted into other sentences as names of components."""
TEXTS = [
    *(text for name, text in SENTENCES.items() if name not in LABELS),
    *(text for _, text in SECTION_TEXTS.values()),
    *SWEEP_SUMMARIES.values(),
    *SWEEP_NOTES.values(),
    *METRIC_DESCRIPTIONS.values(),
]
CODE = "".join(path.read_text() for path in Path(report.__path__[0]).rglob("*.py") if path.name != "sentences.py")


@pytest.mark.parametrize("text", TEXTS)
def test_sentence_is_complete_and_short(text: str) -> None:
    assert re.match(r"(<\w+>)?[A-Z{]", text)
    assert re.search(r"\.(</\w+>)?$", text)
    assert all(len(sentence.split()) <= MAX_WORDS for sentence in re.split(r"(?<=[.?]) (?=[A-Z{])", text))


@pytest.mark.parametrize("name", SENTENCES)
def test_placeholders_are_named(name: str) -> None:
    fields = [field for _, field, _, _ in string.Formatter().parse(SENTENCES[name]) if field is not None]
    assert all(field.isidentifier() for field in fields)
    assert "{" not in fill_sentence(name, **dict.fromkeys(fields, "x"))


def test_every_sentence_is_used() -> None:
    built = {f"{kind}_with_names" for kind in ("classes", "attributes")} | set(SHORT_LIMITATIONS)
    names = [*SENTENCES, *SWEEP_SUMMARIES, *SWEEP_NOTES, *METRIC_DESCRIPTIONS, *RELIABILITY_LABELS]
    assert [name for name in names if f'"{name}"' not in CODE and name not in built] == []


def test_every_slider_has_a_section() -> None:
    groups = {group for builders in SWEEP_BUILDERS.values() for group in builders}
    assert set(SECTION_TEXTS) == groups - {"transfer", "projections"}, "these are grids only"


def test_every_number_of_grid_cells_has_a_location() -> None:
    assert set(LOCATIONS) == set(range(MAX_LOCATIONS + 1))


def test_values_are_escaped() -> None:
    assert fill_sentence("brighter") == "The whole image becomes brighter."
    assert "&lt;b&gt;" in fill_sentence("color_change", classes="<b>", change="darker")
