"""Grids with headings, difference maps, filmstrips, and animations with the classifier's outputs."""

import base64
import importlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featgan.config.metric_specs import BASELINES
from featgan.errors import UserError
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.edits.rendering import RenderedSweep, difference_images, difference_scale
from featgan.report.edits.sources import SourceImages
from featgan.report.edits.sweeps import MAX_DONORS, Sweep, SweepInputs, transfer_sweeps
from featgan.report.figures.animation import animate_sweep, check_animation_kinds, ping_pong_frames
from featgan.report.figures.animation_frames import BAR_COLOR, BAR_HEIGHT, draw_panel
from featgan.report.figures.charts import MARK_CLASSES
from featgan.report.figures.data_uris import encode_difference_filmstrip, encode_filmstrip, encode_mosaic
from featgan.report.figures.grids import (
    BACKGROUND_COLOR,
    GAP,
    GROUP_GAP,
    MARGIN,
    MAX_GRID_SOURCES,
    GridColumn,
    cell_size,
    draw_labeled_grid,
    fit_text,
    load_font,
    render_grid,
)
from featgan.report.html import page
from featgan.report.html.page import Report
from tests.helpers.report import SIZE, build_report, build_report_inputs


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report()


def decode_data_uri(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_grid_has_a_cell_for_each_image_and_headings() -> None:
    columns = [GridColumn("source", torch.full((2, 3, 40, 40), 200, dtype=torch.uint8))]
    columns += [
        GridColumn(name, torch.zeros(2, 3, 40, 40, dtype=torch.uint8), starts_group=name == "10 %")
        for name in ("10 %", "50 %")
    ]
    sheet = draw_labeled_grid("A title", columns)
    cell = cell_size(40)
    assert cell == 120
    assert sheet.width == 2 * MARGIN + 3 * cell + GAP + GROUP_GAP
    top = sheet.height - MARGIN - 2 * cell - GAP
    left = MARGIN + cell + GROUP_GAP
    assert sheet.getpixel((MARGIN + 5, top + 5)) == (200, 200, 200)
    assert sheet.getpixel((left + cell - 1, top + cell - 1)) == (0, 0, 0)
    assert sheet.getpixel((left + 5, top + cell + 1)) == BACKGROUND_COLOR
    for number in range(3):
        start = MARGIN + number * (cell + GAP) + (GROUP_GAP - GAP) * (number > 0)
        heading = sheet.crop((start, top - 22, start + cell, top)).convert("L")
        assert min(heading.tobytes()) < 60, "dark text"


def test_headings_shrink_before_they_are_truncated() -> None:
    text, face = fit_text("reconstruction", 96, 14)
    assert text == "reconstruction" and 9 <= face.size <= 14 and face.getlength(text) <= 96
    text, face = fit_text("a very long name of a class " * 3, 96, 14)
    assert text.endswith("\N{HORIZONTAL ELLIPSIS}") and face.getlength(text) <= 96
    assert load_font(14).getmask("\N{CYRILLIC CAPITAL LETTER ZHE}").getbbox() is not None


def test_component_grid_starts_with_the_source_and_ends_with_difference_maps(report: Report) -> None:
    component, transfer = report.renderings[0], report.renderings[-1]
    with Image.open(io.BytesIO(render_grid(report.sources, component, report.scale))) as image:
        headings = image.text["Columns"].split(" | ")  # type: ignore[attr-defined]
        assert image.width == 2 * MARGIN + 12 * cell_size(SIZE) + 8 * GAP + 3 * GROUP_GAP
    assert headings[:7] == ["source", "1 %", "10 %", "50 %", "90 %", "99 %", "reconstruction"] and len(headings) == 12
    with Image.open(io.BytesIO(render_grid(report.sources, transfer, report.scale))) as taller:
        assert taller.height == image.height + cell_size(SIZE) + GAP  # images above the columns


def test_grid_shows_a_limited_number_of_sources() -> None:
    sweep = Sweep("a", "class", "A", ("low", "high"), torch.zeros(20, 2, 1))
    images = torch.zeros(20, 3, 96, 96, dtype=torch.uint8)
    rendering = RenderedSweep(sweep, images[:, None].repeat(1, 2, 1, 1, 1), images)
    sources = SourceImages(images, tuple(map(str, range(20))), None, "")
    with Image.open(io.BytesIO(render_grid(sources, rendering, 0.1))) as image:
        assert image.text["Rows"].count("|") == MAX_GRID_SOURCES - 1  # type: ignore[attr-defined]
        assert image.height < (MAX_GRID_SOURCES + 1) * 100 + 60


def test_number_of_transfers_is_linear_in_the_number_of_sources() -> None:
    inputs = build_report_inputs()
    features = torch.zeros(20, 4)
    images = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    sweep_inputs = SweepInputs(
        "features", features, images, lambda target, source: inputs.space.standardize(target), inputs.space
    )
    (sweep,) = transfer_sweeps(sweep_inputs)
    assert sweep.conditions.shape[:2] == (20, MAX_DONORS) and len(sweep.headings) == MAX_DONORS
    assert sweep.heading_images is not None and len(sweep.heading_images) == MAX_DONORS


def test_difference_maps_share_one_scale() -> None:
    sweep = Sweep("a", "class", "A", ("low", "high"), torch.zeros(1, 2, 1))
    frames = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
    frames[0, 1] = 51
    rendering = RenderedSweep(sweep, frames, torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert rendering.differences is not None
    assert rendering.differences[0, :, 0, 0].tolist() == pytest.approx([0, 0.2])
    darker = RenderedSweep(sweep, frames.flip(1) * 0 + 255, 255 - frames[:, 1])
    assert darker.differences is not None and float(darker.differences.max()) == pytest.approx(0.2)
    assert difference_scale([rendering]) == pytest.approx(0.2)
    colors = difference_images(rendering.differences, 0.2)
    assert colors.shape == frames.shape
    assert colors[0, 0].max() <= 4 and colors[0, 1, 0].min() > 240
    assert difference_scale([replace(rendering, reconstruction=None)]) == 0.05


def test_filmstrips_and_mosaics_are_downscaled_and_without_gaps() -> None:
    frames = torch.zeros(3, 3, 300, 300, dtype=torch.uint8)
    frames[1, 0], frames[2] = 250, 90
    strip = decode_data_uri(encode_filmstrip(frames))
    assert strip.shape == (128, 3 * 128, 3)
    assert abs(strip[64, [64, 192, 320]] - [[0, 0, 0], [250, 0, 0], [90, 90, 90]]).max() < 6
    maps = decode_data_uri(
        encode_difference_filmstrip(torch.stack([torch.zeros(10, 10), torch.full((10, 10), 0.3)]), 0.3)
    )
    assert maps.shape == (5, 10, 3) and maps[2, 1].max() < 12 and maps[2, 8].min() > 150
    rows = decode_data_uri(
        encode_mosaic([torch.zeros(2, 3, 16, 16, dtype=torch.uint8), frames[2:, :, :16, :16].repeat(2, 1, 1, 1)])
    )
    assert rows.shape == (32, 32, 3) and rows[20, 4].max() < 6 and abs(rows[20, 24] - 90).max() < 6


def test_animations_play_forward_and_backward(report: Report) -> None:
    names = [Image.new("L", (1, 1), number) for number in range(4)]
    order, durations = ping_pong_frames(names)
    assert [frame.getpixel((0, 0)) for frame in order] == [0, 1, 2, 3, 2, 1]
    assert durations[0] == durations[3] > durations[1] == durations[5]
    for kind, content in animate_sweep(report.renderings[0], ["gif", "webp"], report.output_spec).items():
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == kind.upper() and image.n_frames == 12 and image.info["loop"] == 0  # type: ignore[attr-defined]
    assert animate_sweep(report.renderings[0], [], report.output_spec) == {}


def test_mp4_plays_forward_and_backward_twice(report: Report) -> None:
    av = pytest.importorskip("av", reason="no PyAV: pip install 'featgan[video]'")
    content = animate_sweep(report.renderings[0], ["mp4"], report.output_spec)["mp4"]
    with av.open(io.BytesIO(content)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
        assert container.streams.video[0].codec_context.name == "h264"
    # Ten frames of one tick, and two end frames of four ticks.
    assert len(frames) == 2 * (10 + 2 * 4)
    assert frames[0].width % 2 == 0 == frames[0].height % 2
    first, middle = (np.asarray(frames[index]).astype(int) for index in (0, 10))
    assert abs(first - middle).mean() > 2


def test_outputs_are_drawn_below_the_image() -> None:
    image = torch.full((3, 160, 160), 100, dtype=torch.uint8)
    output_spec = OutputSpec("expression", ("calm", "glad"))
    panel = draw_panel(image, output_spec, [0, 1], np.array([0.25, 0.75]))
    assert panel.size == (160, 160 + 2 * BAR_HEIGHT)
    line = 160 + BAR_HEIGHT - 3
    filled = [sum(panel.getpixel((x, line + offset)) == BAR_COLOR for x in range(160)) for offset in (0, BAR_HEIGHT)]
    assert filled == pytest.approx([40, 120], abs=2)
    assert panel.getpixel((5, 5)) == (100, 100, 100)
    without_bars = draw_panel(image, OutputSpec("valence_arousal", ("v", "a")), [0, 1], np.array([0.25, -0.75]))
    assert BAR_COLOR not in {color for _, color in without_bars.getcolors(10_000) or []}
    assert draw_panel(image, None, [], None).size == (160, 160)


def test_kind_of_animation_without_encoder_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_animation_kinds(["webp", "gif", "webp"]) == ("webp", "gif")
    with pytest.raises(UserError, match="--video avi: not a kind of animation; use one of gif, webp, mp4 or none"):
        check_animation_kinds(["avi"])

    def raise_import_error(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", raise_import_error)
    with pytest.raises(UserError, match="no H.264 encoder found; run pip install"):
        check_animation_kinds(["mp4"])


def test_every_baseline_has_a_mark_with_its_own_style() -> None:
    assert set(MARK_CLASSES) == set(BASELINES)
    assert len(set(MARK_CLASSES.values())) == len(BASELINES)
    styles = (Path(page.__file__).parent / "static" / "sections.css").read_text()
    assert [mark for mark in MARK_CLASSES.values() if f".mark.{mark} {{" not in styles] == []
