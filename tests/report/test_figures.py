"""Grids with headings, difference maps, films inside the page, and animations with the box's answers on them."""

import base64
import importlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from featgan.errors import UserError
from featgan.report.analysis.predictions import Answer
from featgan.report.edits.rendering import Rendering, difference_images, difference_scale
from featgan.report.edits.sources import Sources
from featgan.report.edits.sweeps import MOST_GIVERS, Sweep, transfer_sweeps
from featgan.report.figures.animation import animate, check_kinds, there_and_back
from featgan.report.figures.animation_frames import BAR, BAR_HEIGHT, draw_panel
from featgan.report.figures.data_uris import film, map_film, mosaic
from featgan.report.figures.grids import (
    GAP,
    GROUP_GAP,
    MARGIN,
    MOST_SOURCES,
    PAPER,
    Column,
    cell_size,
    fitting,
    font,
    labelled_grid,
    render_grid,
)
from featgan.report.html.page import Report
from tests.helpers.report import SIZE, build_report, build_world


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report()


def decode(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_grid_has_a_cell_for_each_image_and_its_headings() -> None:
    columns = [Column("source", torch.full((2, 3, 40, 40), 200, dtype=torch.uint8))]
    columns += [
        Column(name, torch.zeros(2, 3, 40, 40, dtype=torch.uint8), starts_group=name == "10 %")
        for name in ("10 %", "50 %")
    ]
    sheet = labelled_grid("A title", columns)
    cell = cell_size(40)
    assert cell == 120
    assert sheet.width == 2 * MARGIN + 3 * cell + GAP + GROUP_GAP
    top = sheet.height - MARGIN - 2 * cell - GAP
    left = MARGIN + cell + GROUP_GAP
    assert sheet.getpixel((MARGIN + 5, top + 5)) == (200, 200, 200)
    assert sheet.getpixel((left + cell - 1, top + cell - 1)) == (0, 0, 0)
    assert sheet.getpixel((left + 5, top + cell + 1)) == PAPER
    for number in range(3):
        start = MARGIN + number * (cell + GAP) + (GROUP_GAP - GAP) * (number > 0)
        heading = sheet.crop((start, top - 22, start + cell, top)).convert("L")
        assert min(heading.tobytes()) < 60  # ink


def test_headings_shrink_before_they_are_shortened() -> None:
    text, face = fitting("reconstruction", 96, 14)
    assert text == "reconstruction" and 9 <= face.size <= 14 and face.getlength(text) <= 96
    text, face = fitting("a very long name of a class " * 3, 96, 14)
    assert text.endswith("\N{HORIZONTAL ELLIPSIS}") and face.getlength(text) <= 96
    assert font(14).getmask("\N{CYRILLIC CAPITAL LETTER ZHE}").getbbox() is not None


def test_a_component_grid_has_the_source_first_and_difference_maps_beside(report: Report) -> None:
    component, transfer = report.renderings[0], report.renderings[-1]
    with Image.open(io.BytesIO(render_grid(report.sources, component, report.scale))) as image:
        headings = image.text["Columns"].split(" | ")  # type: ignore[attr-defined]
        assert image.width == 2 * MARGIN + 12 * cell_size(SIZE) + 8 * GAP + 3 * GROUP_GAP
    assert headings[:7] == ["source", "1 %", "10 %", "50 %", "90 %", "99 %", "reconstruction"] and len(headings) == 12
    with Image.open(io.BytesIO(render_grid(report.sources, transfer, report.scale))) as taller:
        assert taller.height == image.height + cell_size(SIZE) + GAP  # the pictures above the columns


def test_a_grid_of_many_sources_shows_the_first_ones() -> None:
    sweep = Sweep("a", "class", "A", ("low", "high"), torch.zeros(20, 2, 1))
    images = torch.zeros(20, 3, 96, 96, dtype=torch.uint8)
    rendering = Rendering(sweep, images[:, None].repeat(1, 2, 1, 1, 1), images)
    sources = Sources(images, tuple(map(str, range(20))), None, "")
    with Image.open(io.BytesIO(render_grid(sources, rendering, 0.1))) as image:
        assert image.text["Rows"].count("|") == MOST_SOURCES - 1  # type: ignore[attr-defined]
        assert image.height < (MOST_SOURCES + 1) * 100 + 60


def test_transfers_do_not_grow_with_the_square_of_the_sources() -> None:
    from featgan.report.edits.sweeps import Subject

    world = build_world()
    features = torch.zeros(20, 4)
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    subject = Subject("features", features, images, lambda wanted, own: world.space.standardize(wanted), world.space)
    (sweep,) = transfer_sweeps(subject)
    assert sweep.conditions.shape[:2] == (20, MOST_GIVERS) and len(sweep.headings) == MOST_GIVERS
    assert sweep.heading_images is not None and len(sweep.heading_images) == MOST_GIVERS


def test_difference_maps_share_one_scale() -> None:
    sweep = Sweep("a", "class", "A", ("low", "high"), torch.zeros(1, 2, 1))
    frames = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
    frames[0, 1] = 51
    rendering = Rendering(sweep, frames, torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert rendering.differences is not None
    assert rendering.differences[0, :, 0, 0].tolist() == pytest.approx([0, 0.2])
    darker = Rendering(sweep, frames.flip(1) * 0 + 255, 255 - frames[:, 1])
    assert darker.differences is not None and float(darker.differences.max()) == pytest.approx(0.2)
    assert difference_scale([rendering]) == pytest.approx(0.2)
    colours = difference_images(rendering.differences, 0.2)
    assert colours.shape == frames.shape
    assert colours[0, 0].max() <= 4 and colours[0, 1, 0].min() > 240
    assert difference_scale([replace(rendering, reconstruction=None)]) == 0.05


def test_films_hold_the_frames_side_by_side_and_are_small_enough_to_show() -> None:
    frames = torch.zeros(3, 3, 300, 300, dtype=torch.uint8)
    frames[1, 0], frames[2] = 250, 90
    strip = decode(film(frames))
    assert strip.shape == (128, 3 * 128, 3)
    assert abs(strip[64, [64, 192, 320]] - [[0, 0, 0], [250, 0, 0], [90, 90, 90]]).max() < 6
    maps = decode(map_film(torch.stack([torch.zeros(10, 10), torch.full((10, 10), 0.3)]), 0.3))
    assert maps.shape == (5, 10, 3) and maps[2, 1].max() < 12 and maps[2, 8].min() > 150
    rows = decode(mosaic([torch.zeros(2, 3, 16, 16, dtype=torch.uint8), frames[2:, :, :16, :16].repeat(2, 1, 1, 1)]))
    assert rows.shape == (32, 32, 3) and rows[20, 4].max() < 6 and abs(rows[20, 24] - 90).max() < 6


def test_animations_go_there_and_back(report: Report) -> None:
    names = [Image.new("L", (1, 1), number) for number in range(4)]
    order, durations = there_and_back(names)
    assert [frame.getpixel((0, 0)) for frame in order] == [0, 1, 2, 3, 2, 1]
    assert durations[0] == durations[3] > durations[1] == durations[5]
    for kind, content in animate(report.renderings[0], ["gif", "webp"], report.answer).items():
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == kind.upper() and image.n_frames == 12 and image.info["loop"] == 0  # type: ignore[attr-defined]
    assert animate(report.renderings[0], [], report.answer) == {}


def test_an_mp4_plays_twice_there_and_back(report: Report) -> None:
    av = pytest.importorskip("av", reason="no PyAV: pip install 'featgan[video]'")
    content = animate(report.renderings[0], ["mp4"], report.answer)["mp4"]
    with av.open(io.BytesIO(content)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
        assert container.streams.video[0].codec_context.name == "h264"
    # Ten moving frames and two ends that rest for four ticks each.
    assert len(frames) == 2 * (10 + 2 * 4)
    assert frames[0].width % 2 == 0 == frames[0].height % 2
    first, middle = (np.asarray(frames[index]).astype(int) for index in (0, 10))
    assert abs(first - middle).mean() > 2


def test_the_boxes_answer_is_drawn_under_the_picture() -> None:
    picture = torch.full((3, 160, 160), 100, dtype=torch.uint8)
    answer = Answer("expression", ("calm", "glad"))
    panel = draw_panel(picture, answer, [0, 1], np.array([0.25, 0.75]))
    assert panel.size == (160, 160 + 2 * BAR_HEIGHT)
    line = 160 + BAR_HEIGHT - 3
    filled = [sum(panel.getpixel((x, line + offset)) == BAR for x in range(160)) for offset in (0, BAR_HEIGHT)]
    assert filled == pytest.approx([40, 120], abs=2)
    assert panel.getpixel((5, 5)) == (100, 100, 100)
    plain = draw_panel(picture, Answer("valence_arousal", ("v", "a")), [0, 1], np.array([0.25, -0.75]))
    assert BAR not in {colour for _, colour in plain.getcolors(10_000) or []}
    assert draw_panel(picture, None, [], None).size == (160, 160)


def test_a_kind_of_video_that_cannot_be_made_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_kinds(["webp", "gif", "webp"]) == ("webp", "gif")
    with pytest.raises(UserError, match="--video avi: one of gif, webp, mp4 or none"):
        check_kinds(["avi"])

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match="there is no encoder; run pip install"):
        check_kinds(["mp4"])
