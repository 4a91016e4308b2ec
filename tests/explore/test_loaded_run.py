"""The live page without its web: what becomes of an edit, which pictures are taken, what is saved."""

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featgan.data.conditions import ConditionLayout
from featgan.errors import UserError
from featgan.explore import image_store as module
from featgan.explore.edit_request import Words, describe, parse_ask
from featgan.explore.export import NUM_FRAMES, save_gif, save_png
from featgan.explore.image_store import MOST_KEPT, GoneError, Pictures, decode_upload
from featgan.explore.label_space import LabelSpace
from featgan.explore.latest_request_queue import BusyError, Desk, SupersededError
from featgan.explore.page import build_page
from featgan.explore.prediction_bars import build_bars, headline, read_outputs
from featgan.explore.session import Session, choose_scale, open_session
from featgan.inference import training_data
from featgan.report.analysis.predictions import Answer
from featgan.system.images import to_float
from tests.conftest import World
from tests.helpers.explore import TAB, encode, first_picture, obeying, train_run, wish

COMPONENTS = {"dataset": {"features": "stand-in-3", "condition": {"encoding": "components"}}}


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on features, on their components, on expressions, on valence and arousal."""
    root = tmp_path_factory.mktemp("explored")
    train_run(world, root / "features")
    train_run(world, root / "expression", dataset={"condition": {"kind": "expression"}})
    train_run(world, root / "affect", dataset={"condition": {"kind": "valence_arousal"}})
    return root


@pytest.fixture
def patched(world: World) -> Iterator[pytest.MonkeyPatch]:
    with obeying(world) as patch:
        yield patch


@pytest.fixture
def session(runs: Path, patched: pytest.MonkeyPatch) -> Session:
    return open_session([runs / "features"])


def decode(address: str) -> torch.Tensor:
    """A data address => uint8 [3, S, S]."""
    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1)


def edited(session: Session, **parts: object) -> dict[str, Any]:
    """What the page shows of the first run."""
    return session.edit(wish(session, **parts))["runs"][0]


def test_a_component_that_is_set_moves_alone_and_the_box_sees_it(session: Session, world: World) -> None:
    still, moved = edited(session), edited(session, pins={1: 0.75})
    assert still["asked"] == still["own"] and still["shift"] is None
    assert moved["asked"][1] == 0.75 and moved["own"] == still["own"]
    others = [index for index in range(6) if index != 1]
    assert np.array(moved["asked"])[others] == pytest.approx(np.array(moved["own"])[others], abs=2e-3)
    assert moved["measured"][1] == pytest.approx(0.75, abs=0.1) and moved["shift"] == pytest.approx(1, abs=0.1)
    assert moved["edited"] != still["edited"]


def test_a_generator_that_is_told_changes_is_told_those_of_the_picture(
    patched: pytest.MonkeyPatch, world: World, tmp_path: Path
) -> None:
    session = open_session([train_run(world, tmp_path / "run", generator={"request": "change"})])
    assert edited(session, pins={1: 0.75})["measured"][1] == pytest.approx(0.75, abs=0.1)
    ask = wish(session, pins={1: 0.75})
    picture, second = session.find(ask)
    assert torch.equal(
        session.first.path_to(ask, picture, second, 3)[-1], session.first.edit(ask, picture, second).image
    )


def test_the_answer_is_the_boxs_to_the_picture_that_is_shown(session: Session, world: World) -> None:
    found = edited(session, pins={0: 2})
    outputs = world.box(to_float(decode(found["edited"])[None]))[1][0]
    assert [bar["value"] for bar in found["bars"]] == pytest.approx(outputs.softmax(0).tolist(), abs=1e-3)
    best = int(outputs.argmax())
    assert found["headline"] == f"{world.box.class_names[best]} {100 * float(outputs.softmax(0)[best]):.0f} %"
    source = world.box(to_float(session.pictures.find(first_picture(session)).images[16][None]))[1][0]
    assert [bar["source"] for bar in found["bars"]] == pytest.approx(source.softmax(0).tolist(), abs=1e-3)


def test_a_second_image_is_moved_to_by_an_amount(session: Session) -> None:
    other = session.pictures.sample(2)[1].id
    own = np.array(edited(session)["own"])
    goal = np.array(edited(session, picture=other)["own"])
    assert edited(session, second=other)["asked"] == pytest.approx(goal, abs=2e-3)
    half = edited(session, second=other, amount=0.5, pins={2: 1})
    expected = (own + goal) / 2
    expected[2] = 1
    assert half["asked"] == pytest.approx(expected, abs=2e-3)


def test_classes_are_pushed_along_means_and_along_the_boxs_weights(session: Session, world: World) -> None:
    run = session.first
    space, means = run.model.space, run.class_means
    assert space is not None and means is not None and run.head_weight is not None
    own = np.array(edited(session)["own"])
    step = (space.project(means[1]) - space.project(means).mean(0)).numpy()
    push = {"kind": "class", "index": 1, "amount": 2}
    assert edited(session, push=push)["asked"] == pytest.approx(own + 2 * step, abs=5e-3)
    before = edited(session)["bars"][3]["value"]
    assert edited(session, push={"kind": "head", "index": 3, "amount": 2})["bars"][3]["value"] > before
    with pytest.raises(UserError, match="features: has no direction class 41"):
        edited(session, push={"kind": "class", "index": 40, "amount": 2})


def test_what_changed_is_shown_on_a_scale_that_is_said(session: Session) -> None:
    answer = session.edit(wish(session, pins={0: 2}, difference=True))
    assert answer["scale"] in (0.05, 0.1, 0.2, 0.4, 1.0)
    assert decode(answer["runs"][0]["difference"]).float().std() > 0
    untouched = session.edit(wish(session, difference=True))
    assert untouched["scale"] == 0.05 and decode(untouched["runs"][0]["difference"]).max() < 8
    assert choose_scale([torch.full((4, 4), 0.3), torch.zeros(4, 4)]) == 0.4


def test_two_runs_are_edited_side_by_side(
    runs: Path, patched: pytest.MonkeyPatch, world: World, tmp_path: Path
) -> None:
    train_run(world, tmp_path / "three", **COMPONENTS)
    alike = open_session([runs / "features", runs / "features"])
    assert alike.shares_space
    first, second = alike.edit(wish(alike, pins={0: 1}))["runs"]
    assert first == second and "beside" in build_page(alike)
    unlike = open_session([runs / "features", tmp_path / "three"])
    warning = "component 1 of one is not component 1 of the other"
    assert unlike.shares_space and warning not in build_page(unlike), "the first three of six are those of three"
    model = unlike.runs[1].model
    assert model.space is not None
    unlike.runs[1].model = replace(model, space=replace(model.space, components=model.space.components.flip(0)))
    assert not unlike.shares_space and warning in build_page(unlike)
    unlike.runs[1].model = model
    first, second = unlike.edit(wish(unlike, pins={0: 1, 5: 1}))["runs"]
    assert len(first["asked"]) == 6 and len(second["asked"]) == 3
    with pytest.raises(UserError, match="trained on expression, .* on features; compare runs of one kind"):
        open_session([runs / "features", runs / "expression"])


def test_a_box_that_moved_leaves_the_validation_images(runs: Path, patched: pytest.MonkeyPatch, world: World) -> None:
    def gone(spec: str, layer: str | None = None, device: object = None) -> None:
        raise UserError("stand-in: no such file")

    patched.setattr(training_data, "load_blackbox", gone)
    session = open_session([runs / "features"])
    assert not session.takes_uploads and "no such file" in session.first.remarks[0]
    found = edited(session, pins={0: 1})
    assert found["edited"] and "bars" not in found and "measured" not in found and found["shift"] is None
    page = build_page(session)
    assert "stand-in: no such file" in page and 'type="file"' not in page
    picture = session.pictures.add(encode("PNG"), "mine")
    with pytest.raises(UserError, match="without its black box"):
        edited(session, picture=picture.id)
    with pytest.raises(UserError, match="no such file"):
        open_session([runs / "features"], specs=["elsewhere"])


def test_without_the_shards_ones_own_pictures_are_left(runs: Path, patched: pytest.MonkeyPatch) -> None:
    def gone(*details: object, **named: object) -> None:
        raise UserError("no shards")

    patched.setattr(training_data, "open_shards", gone)
    session = open_session([runs / "features"])
    assert session.pictures.gallery is None and "no shards" in session.first.remarks[0] and build_page(session)
    picture = session.pictures.add(encode("PNG"), "mine")
    assert edited(session, picture=picture.id, pins={0: 1})["asked"][0] == 1
    patched.setattr(training_data, "load_blackbox", gone)
    with pytest.raises(UserError, match="neither its images nor its black box"):
        open_session([runs / "features"])


def test_runs_on_labels(runs: Path, patched: pytest.MonkeyPatch) -> None:
    session = open_session([runs / "expression"])
    assert "judge" in session.first.remarks[0] and session.takes_uploads
    own = edited(session)
    assert sum(own["labels"]) == 1 and own["known"] and "bars" not in own
    asked = [0.0] * 8
    asked[1] = 1
    assert edited(session, labels=asked)["labels"] == asked
    with pytest.raises(UserError, match="labels: 2 numbers where the run has 8"):
        edited(session, labels=[0, 1])
    uploaded = edited(session, picture=session.pictures.add(encode("PNG"), "mine").id)
    assert uploaded["labels"] == [1] + [0] * 7 and not uploaded["known"]  # neutral
    judged = open_session([runs / "expression"], specs=["judge"])
    assert len(edited(judged)["bars"]) == 8 and judged.first.remarks == []
    affect = open_session([runs / "affect"])
    bright = decode(edited(affect, labels=[1, 1])["edited"]).float().mean()
    assert bright > decode(edited(affect, labels=[-1, -1])["edited"]).float().mean() + 20
    assert 'class="pad"' in build_page(affect)


def test_label_spaces_of_two_data_sets() -> None:
    layout = ConditionLayout((2, 3))
    attributes = LabelSpace("attributes", ("Male", "Young"), 0, layout)
    classes = LabelSpace("expression", ("sad", "neutral", "glad"), 1, layout)
    assert attributes.embed(attributes.check([1, 0])).tolist() == [[1, 0, 0, 0, 0, 1, 0]]
    assert classes.embed(classes.plain()).tolist() == [[0, 0, 0, 1, 0, 0, 1]]
    assert attributes.plain().tolist() == [[0, 0]]


def test_saved_files_hold_the_edit_and_the_way_to_it(session: Session) -> None:
    ask = wish(session, pins={0: 2})
    with Image.open(io.BytesIO(save_png(session, ask))) as image:
        image.load()
        assert image.format == "PNG" and image.width > 3 * 96
    with Image.open(io.BytesIO(save_gif(session, ask))) as image:
        assert image.format == "GIF" and image.n_frames == 2 * (NUM_FRAMES - 1)  # type: ignore[attr-defined]
        first = image.convert("RGB").tobytes()
        image.seek(NUM_FRAMES - 1)
        assert image.convert("RGB").tobytes() != first


def test_an_edit_in_words() -> None:
    text = f'{{"session": "{TAB}", "picture": "v1", "second": "v2", "amount": 0.5, "pins": {{"2": -1.5, "1": 1}}, '
    text += '"push": {"kind": "head", "index": 1, "amount": 2}}'
    said = describe(parse_ask(text.encode()), Words(("a", "b"), ("c", "d"), (), {1: "smile"}))
    minus = "\N{MINUS SIGN}"
    expected = "50 % of the way to another image, +2.00 along the weights of d, smile at +1.00, component 3 at "
    assert said == f"{expected}{minus}1.50"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ('"pins": {"0": 1e9}', "pins.0"),
        ('"pins": {"-1": 1}', "pins"),
        ('"pins": {"0": NaN}', "pins.0"),
        ('"amount": 2', "amount"),
        ('"picture": "../../etc"', "picture"),
        ('"labels": [7]', "labels.0"),
        ('"colour": 1', "colour"),
        ('"dataset": 2', "dataset"),
        ("", "the request"),
    ],
)
def test_wishes_out_of_bounds_are_one_line(part: str, said: str) -> None:
    text = f'{{"session": "{TAB}", "picture": "v1", {part}}}'
    with pytest.raises(UserError, match=f"^{said}") as refused:
        parse_ask(text.encode())
    assert "\n" not in str(refused.value)


def test_answers_are_read_by_their_kind() -> None:
    affect = Answer("valence_arousal", ("valence", "arousal"))
    assert (
        headline(affect, read_outputs(affect, torch.tensor([0.3, -0.2]))) == "valence +0.30, arousal \N{MINUS SIGN}0.20"
    )
    attributes = Answer("attributes", ("Male", "Young", "Smiling"))
    values = read_outputs(attributes, torch.tensor([4.0, -4.0, 2.0]))
    assert headline(attributes, values) == "Male 98 %, Smiling 88 %"
    many = Answer("other", tuple(f"output {index}" for index in range(40)))
    bars = build_bars(many, [float(index == 30) for index in range(40)], [float(index == 3) for index in range(40)])
    assert len(bars) == 12 and {"output 3", "output 30"} <= {bar.name for bar in bars}


def test_pictures_are_decoded_in_the_sizes_of_the_runs() -> None:
    found = decode_upload(encode("JPEG"), [16, 24])
    assert {size: tuple(image.shape) for size, image in found.items()} == {16: (3, 16, 16), 24: (3, 24, 24)}
    assert found[16][0].float().mean() > 240 > 20 > found[16][1].float().mean()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a JPEG or PNG image"),
        (b"<svg></svg>", "not a JPEG or PNG image"),
        (encode("GIF"), "not a JPEG or PNG image"),
        (encode("WEBP"), "not a JPEG or PNG image"),
        (encode("BMP"), "not a JPEG or PNG image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not a readable"),
        (encode("PNG", (90, 90))[:-60], "not a readable image"),
        (encode("JPEG", (90, 90))[:300], "not a readable image"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        decode_upload(content, [16])
    assert "\n" not in str(refused.value) and "/tmp" not in str(refused.value)


def test_large_pictures_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bytearray(encode("PNG", (8, 8)))
    bomb[16:24] = (60_000).to_bytes(4) * 2  # the header's width and height
    with pytest.raises(UserError, match="not a readable|more than 25 million pixels"):
        decode_upload(bytes(bomb), [16])
    monkeypatch.setattr(module, "MOST_PIXELS", 1000)
    monkeypatch.setattr(module, "read_image", lambda *details: pytest.fail("decoded"))
    with pytest.raises(UserError, match="million pixels"):
        decode_upload(encode("PNG", (50, 50)), [16])
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="larger than"):
        decode_upload(encode("PNG", (50, 50)) + bytes(100), [16])


def test_the_oldest_dropped_picture_gives_way() -> None:
    kept = Pictures(None, [8])
    names = [kept.add(encode("PNG", (8, 8)), f"  {index}\n name").id for index in range(MOST_KEPT + 1)]
    assert kept.find(names[1]).name == "1 name" and len(kept.dropped) == MOST_KEPT
    with pytest.raises(GoneError, match="no longer kept"):
        kept.find(names[0])
    with pytest.raises(GoneError):
        kept.find("v1")


def test_validation_images_are_found_by_their_row(session: Session) -> None:
    sample = session.pictures.sample(4)
    assert [picture.id for picture in session.pictures.sample(4)] == [picture.id for picture in sample]
    assert {picture.id for picture in session.pictures.sample(4, seed=1)} != {picture.id for picture in sample}
    assert session.pictures.find(first_picture(session)).name.endswith(")")
    with pytest.raises(GoneError, match="no such validation image"):
        session.pictures.find("v999999")


def test_of_a_pages_wishes_only_the_newest_waits() -> None:
    async def play() -> None:
        desk, gate, done = Desk(most_waiting=2), threading.Event(), []

        def work(name: str) -> str:
            gate.wait(10)
            done.append(name)
            return name

        running = asyncio.create_task(desk.ask("a", lambda: work("running")))
        await asyncio.sleep(0.01)
        older = asyncio.create_task(desk.ask("a", lambda: work("older")))
        other = asyncio.create_task(desk.ask("b", lambda: work("other")))
        await asyncio.sleep(0)
        newer = asyncio.create_task(desk.ask("a", lambda: work("newer")))
        await asyncio.sleep(0)
        with pytest.raises(SupersededError):
            await older  # at once: the first one is still running
        with pytest.raises(BusyError):
            await desk.ask("c", lambda: work("third"))
        gate.set()
        assert [await running, await other, await newer] == ["running", "other", "newer"]
        assert done == ["running", "other", "newer"]
        with pytest.raises(ZeroDivisionError):
            await desk.ask("a", lambda: 1 // 0)
        assert await desk.ask("a", lambda: 5) == 5

    asyncio.run(play())
