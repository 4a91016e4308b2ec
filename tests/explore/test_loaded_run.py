"""Tests of the interactive page without HTTP: edits, uploaded images, exports and the request queue."""

import asyncio
import base64
import io
import json
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
from featgan.explore import image_store
from featgan.explore.edit_request import DisplayNames, describe_edit, parse_edit_request
from featgan.explore.export import NUM_FRAMES, export_gif, export_png
from featgan.explore.image_store import MAX_STORED_UPLOADS, ImageNotFoundError, ImageStore, decode_upload
from featgan.explore.label_space import LabelSpace
from featgan.explore.latest_request_queue import LatestRequestQueue, QueueFullError, SupersededError
from featgan.explore.page import build_explore_page
from featgan.explore.prediction_bars import build_output_bars, format_prediction, to_display_values
from featgan.explore.session import ExploreSession, choose_difference_scale, load_session
from featgan.inference import training_data
from featgan.report.analysis.predictions import OutputSpec
from featgan.system.images import to_float
from tests.conftest import World
from tests.helpers.explore import (
    CLIENT_ID,
    encode_image,
    first_image_id,
    make_edit_request,
    perfect_generator,
    train_run,
)

COMPONENT_SECTIONS = {"dataset": {"feature_cache": "linear-3", "condition": {"encoding": "components"}}}


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train runs on features, on expressions, and on valence and arousal."""
    root = tmp_path_factory.mktemp("explore")
    train_run(world, root / "features")
    train_run(world, root / "expression", dataset={"condition": {"kind": "expression"}})
    train_run(world, root / "affect", dataset={"condition": {"kind": "valence_arousal"}})
    return root


@pytest.fixture
def perfect_model(world: World) -> Iterator[pytest.MonkeyPatch]:
    with perfect_generator(world) as patch:
        yield patch


@pytest.fixture
def session(runs: Path, perfect_model: pytest.MonkeyPatch) -> ExploreSession:
    return load_session([runs / "features"])


def decode_data_uri(data_uri: str) -> torch.Tensor:
    """Decode a PNG data URI into uint8 [3, S, S]."""
    content = base64.b64decode(data_uri.removeprefix("data:image/png;base64,"))
    return torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1)


def edit_with_first_run(session: ExploreSession, **fields: object) -> dict[str, Any]:
    """Return the response of the first run to an edit request."""
    return session.edit_with_all_runs(make_edit_request(session, **fields))["runs"][0]


def test_setting_a_component_moves_only_that_component(session: ExploreSession) -> None:
    unedited = edit_with_first_run(session)
    edited = edit_with_first_run(session, component_values={1: 0.75})
    assert unedited["target_values"] == unedited["source_values"] and unedited["target_progress"] is None
    assert edited["target_values"][1] == 0.75 and edited["source_values"] == unedited["source_values"]
    others = [index for index in range(6) if index != 1]
    target_values, source_values = np.array(edited["target_values"]), np.array(edited["source_values"])
    assert target_values[others] == pytest.approx(source_values[others], abs=2e-3)
    assert edited["measured_values"][1] == pytest.approx(0.75, abs=0.1)
    assert edited["target_progress"] == pytest.approx(1, abs=0.1)
    assert edited["edited"] != unedited["edited"]


def test_generator_receives_the_difference_of_the_image_if_conditioned_on_it(
    perfect_model: pytest.MonkeyPatch, world: World, tmp_path: Path
) -> None:
    generator_section = {"condition_input": "target_and_difference"}
    session = load_session([train_run(world, tmp_path / "run", generator=generator_section)])
    edited = edit_with_first_run(session, component_values={1: 0.75})
    assert edited["measured_values"][1] == pytest.approx(0.75, abs=0.1)
    edit_request = make_edit_request(session, component_values={1: 0.75})
    source_image, target_image = session.find_images(edit_request)
    assert torch.equal(
        session.first_run.interpolation_frames(edit_request, source_image, target_image, 3)[-1],
        session.first_run.apply_edit(edit_request, source_image, target_image).image,
    )


def test_the_prediction_is_for_the_displayed_image(session: ExploreSession, world: World) -> None:
    actual = edit_with_first_run(session, component_values={0: 2})
    outputs = world.classifier(to_float(decode_data_uri(actual["edited"])[None]))[1][0]
    assert [bar["value"] for bar in actual["bars"]] == pytest.approx(outputs.softmax(0).tolist(), abs=1e-3)
    best = int(outputs.argmax())
    assert actual["prediction"] == f"{world.classifier.class_names[best]} {100 * float(outputs.softmax(0)[best]):.0f} %"
    source = world.classifier(
        to_float(session.image_store.find_image(first_image_id(session)).images_by_size[16][None])
    )[1][0]
    assert [bar["source"] for bar in actual["bars"]] == pytest.approx(source.softmax(0).tolist(), abs=1e-3)


def test_target_image_moves_the_features_by_the_amount(session: ExploreSession) -> None:
    other = session.image_store.sample(2)[1].id
    source_values = np.array(edit_with_first_run(session)["source_values"])
    other_values = np.array(edit_with_first_run(session, image=other)["source_values"])
    actual = edit_with_first_run(session, target_image=other)["target_values"]
    assert actual == pytest.approx(other_values, abs=2e-3)
    actual = edit_with_first_run(session, target_image=other, amount=0.5, component_values={2: 1})["target_values"]
    expected = (source_values + other_values) / 2
    expected[2] = 1
    assert actual == pytest.approx(expected, abs=2e-3)


def test_class_steps_follow_the_class_means_and_the_head_weights(session: ExploreSession) -> None:
    run = session.first_run
    space, means = run.model.space, run.class_means
    assert space is not None and means is not None and run.head_weight is not None
    source_values = np.array(edit_with_first_run(session)["source_values"])
    step = (space.project(means[1]) - space.project(means).mean(0)).numpy()
    actual = edit_with_first_run(session, class_step={"kind": "class", "index": 1, "amount": 2})["target_values"]
    assert actual == pytest.approx(source_values + 2 * step, abs=5e-3)
    before = edit_with_first_run(session)["bars"][3]["value"]
    edited = edit_with_first_run(session, class_step={"kind": "head", "index": 3, "amount": 2})
    assert edited["bars"][3]["value"] > before
    with pytest.raises(UserError, match="features: no direction for class 41"):
        edit_with_first_run(session, class_step={"kind": "class", "index": 40, "amount": 2})


def test_difference_maps_have_a_reported_scale(session: ExploreSession) -> None:
    edit_request = make_edit_request(session, component_values={0: 2}, include_difference=True)
    result = session.edit_with_all_runs(edit_request)
    assert result["scale"] in (0.05, 0.1, 0.2, 0.4, 1.0)
    assert decode_data_uri(result["runs"][0]["difference"]).float().std() > 0
    unedited = session.edit_with_all_runs(make_edit_request(session, include_difference=True))
    assert unedited["scale"] == 0.05 and decode_data_uri(unedited["runs"][0]["difference"]).max() < 8
    assert choose_difference_scale([torch.full((4, 4), 0.3), torch.zeros(4, 4)]) == 0.4


def test_two_runs_are_edited_side_by_side(
    runs: Path, perfect_model: pytest.MonkeyPatch, world: World, tmp_path: Path
) -> None:
    train_run(world, tmp_path / "three", **COMPONENT_SECTIONS)
    same_runs = load_session([runs / "features", runs / "features"])
    assert same_runs.shares_feature_space
    first, second = same_runs.edit_with_all_runs(make_edit_request(same_runs, component_values={0: 1}))["runs"]
    assert first == second and "Prediction (features)" in build_explore_page(same_runs)
    session = load_session([runs / "features", tmp_path / "three"])
    warning = "component 1 of one run is not component 1 of the other"
    # The 3 components of the second run are the first of the 6 of the first run.
    assert session.shares_feature_space and warning not in build_explore_page(session)
    model = session.runs[1].model
    assert model.space is not None
    session.runs[1].model = replace(model, space=replace(model.space, components=model.space.components.flip(0)))
    assert not session.shares_feature_space and warning in build_explore_page(session)
    session.runs[1].model = model
    first, second = session.edit_with_all_runs(make_edit_request(session, component_values={0: 1, 5: 1}))["runs"]
    assert len(first["target_values"]) == 6 and len(second["target_values"]) == 3


def test_runs_with_different_kinds_of_condition_are_rejected(runs: Path, perfect_model: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="trained on expression, but .* on features; compare runs with the same kind"):
        load_session([runs / "features", runs / "expression"])


def test_without_the_classifier_only_validation_images_can_be_edited(
    runs: Path, perfect_model: pytest.MonkeyPatch
) -> None:
    def fail_to_load(spec: str, layer: str | None = None, device: object = None, trusted: object = None) -> None:
        raise UserError("linear: no such file")

    perfect_model.setattr(training_data, "load_blackbox", fail_to_load)
    session = load_session([runs / "features"])
    assert not session.accepts_uploads and "no such file" in session.first_run.notices[0]
    edited = edit_with_first_run(session, component_values={0: 1})
    assert edited["edited"] and "bars" not in edited and "measured_values" not in edited
    assert edited["target_progress"] is None
    page = build_explore_page(session)
    assert "linear: no such file" in page and 'type="file"' not in page
    image = session.image_store.add_upload(encode_image("PNG"), "mine")
    with pytest.raises(UserError, match="the classifier is not available"):
        edit_with_first_run(session, image=image.id)
    with pytest.raises(UserError, match="no such file"):
        load_session([runs / "features"], specs=["elsewhere"])


def test_without_the_shards_only_uploaded_images_can_be_edited(runs: Path, perfect_model: pytest.MonkeyPatch) -> None:
    def fail_to_open(*arguments: object, **keywords: object) -> None:
        raise UserError("no shards")

    perfect_model.setattr(training_data, "open_shards", fail_to_open)
    session = load_session([runs / "features"])
    assert session.image_store.validation_images is None and "no shards" in session.first_run.notices[0]
    assert build_explore_page(session)
    image = session.image_store.add_upload(encode_image("PNG"), "mine")
    assert edit_with_first_run(session, image=image.id, component_values={0: 1})["target_values"][0] == 1
    perfect_model.setattr(training_data, "load_blackbox", fail_to_open)
    with pytest.raises(UserError, match="neither validation images nor the classifier can be loaded"):
        load_session([runs / "features"])


def test_label_conditioned_runs_are_edited_by_labels(runs: Path, perfect_model: pytest.MonkeyPatch) -> None:
    session = load_session([runs / "expression"])
    assert "evaluation classifier" in session.first_run.notices[0] and session.accepts_uploads
    unedited = edit_with_first_run(session)
    assert sum(unedited["labels"]) == 1 and unedited["has_known_labels"] and "bars" not in unedited
    labels = [0.0] * 8
    labels[1] = 1
    assert edit_with_first_run(session, labels=labels)["labels"] == labels
    with pytest.raises(UserError, match="labels: expected 8 values, got 2"):
        edit_with_first_run(session, labels=[0, 1])
    upload = session.image_store.add_upload(encode_image("PNG"), "mine")
    uploaded = edit_with_first_run(session, image=upload.id)
    assert uploaded["labels"] == [1] + [0] * 7 and not uploaded["has_known_labels"]  # neutral


def test_evaluation_classifier_of_a_label_conditioned_run_predicts(
    runs: Path, perfect_model: pytest.MonkeyPatch
) -> None:
    session = load_session([runs / "expression"], specs=["evaluation-classifier"])
    assert len(edit_with_first_run(session)["bars"]) == 8 and session.first_run.notices == []


def test_valence_and_arousal_are_edited_on_a_pad(runs: Path, perfect_model: pytest.MonkeyPatch) -> None:
    session = load_session([runs / "affect"])
    bright = decode_data_uri(edit_with_first_run(session, labels=[1, 1])["edited"]).float().mean()
    dark = decode_data_uri(edit_with_first_run(session, labels=[-1, -1])["edited"]).float().mean()
    assert bright > dark + 20
    assert 'class="valence-arousal-pad"' in build_explore_page(session)


def test_label_spaces_of_two_data_sets() -> None:
    layout = ConditionLayout((2, 3))
    attributes = LabelSpace("attributes", ("Male", "Young"), 0, layout)
    classes = LabelSpace("expression", ("sad", "neutral", "glad"), 1, layout)
    assert attributes.embed(attributes.validate_labels([1, 0])).tolist() == [[1, 0, 0, 0, 0, 1, 0]]
    assert classes.embed(classes.default_values()).tolist() == [[0, 0, 0, 1, 0, 0, 1]]
    assert attributes.default_values().tolist() == [[0, 0]]


def test_exports_contain_the_edit_and_its_interpolation(session: ExploreSession) -> None:
    edit_request = make_edit_request(session, component_values={0: 2})
    with Image.open(io.BytesIO(export_png(session, edit_request))) as image:
        image.load()
        assert image.format == "PNG" and image.width > 3 * 96
    with Image.open(io.BytesIO(export_gif(session, edit_request))) as image:
        assert image.format == "GIF" and image.n_frames == 2 * (NUM_FRAMES - 1)  # type: ignore[attr-defined]
        first = image.convert("RGB").tobytes()
        image.seek(NUM_FRAMES - 1)
        assert image.convert("RGB").tobytes() != first


def test_edit_is_described_in_words() -> None:
    class_step = {"kind": "head", "index": 1, "amount": 2}
    fields = {"target_image": "v2", "amount": 0.5, "component_values": {"2": -1.5, "1": 1}, "class_step": class_step}
    edit_request = parse_edit_request(json.dumps({"client_id": CLIENT_ID, "image": "v1", **fields}).encode())
    names = DisplayNames(("a", "b"), ("c", "d"), (), {1: "smile"})
    expected = "50 % of the way to another image, +2.00 SD along the weights of d, smile at +1.00 SD, component 3 at "
    assert describe_edit(edit_request, names) == f"{expected}\N{MINUS SIGN}1.50 SD"


@pytest.mark.parametrize(
    ("field", "location"),
    [
        ('"component_values": {"0": 1e9}', "component_values.0"),
        ('"component_values": {"-1": 1}', "component_values"),
        ('"component_values": {"0": NaN}', "component_values.0"),
        ('"amount": 2', "amount"),
        ('"image": "../../etc"', "image"),
        ('"labels": [7]', "labels.0"),
        ('"color": 1', "color"),
        ('"dataset": 2', "dataset"),
        ("", "request"),
    ],
)
def test_out_of_range_requests_are_rejected_in_one_line(field: str, location: str) -> None:
    text = f'{{"client_id": "{CLIENT_ID}", "image": "v1", {field}}}'
    with pytest.raises(UserError, match=f"^{location}") as error:
        parse_edit_request(text.encode())
    assert "\n" not in str(error.value)


def test_predictions_are_formatted_by_the_kind_of_output() -> None:
    affect = OutputSpec("valence_arousal", ("valence", "arousal"))
    assert (
        format_prediction(affect, to_display_values(affect, torch.tensor([0.3, -0.2])))
        == "valence +0.30, arousal \N{MINUS SIGN}0.20"
    )
    attributes = OutputSpec("attributes", ("Male", "Young", "Smiling"))
    values = to_display_values(attributes, torch.tensor([4.0, -4.0, 2.0]))
    assert format_prediction(attributes, values) == "Male 98 %, Smiling 88 %"
    many = OutputSpec("other", tuple(f"output {index}" for index in range(40)))
    bars = build_output_bars(
        many, [float(index == 30) for index in range(40)], [float(index == 3) for index in range(40)]
    )
    assert len(bars) == 12 and {"output 3", "output 30"} <= {bar.name for bar in bars}


def test_uploads_are_decoded_at_the_image_sizes_of_the_runs() -> None:
    actual = decode_upload(encode_image("JPEG"), [16, 24])
    assert {size: tuple(image.shape) for size, image in actual.items()} == {16: (3, 16, 16), 24: (3, 24, 24)}
    assert actual[16][0].float().mean() > 240 > 20 > actual[16][1].float().mean()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file; copy it again"),
        (b"<svg></svg>", "not an image; use JPEG, PNG"),
        (encode_image("ICO"), "not an image; use JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not an image"),
        (encode_image("PNG", (90, 90))[:-60], "truncated; copy it again"),
        (encode_image("JPEG", (90, 90))[:300], "truncated; copy it again"),
    ],
)
def test_file_that_is_not_an_image_is_rejected_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        decode_upload(content, [16])
    assert "\n" not in str(error.value) and "/tmp" not in str(error.value)


def test_large_images_are_rejected_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bytearray(encode_image("PNG", (8, 8)))
    bomb[16:24] = (60_000).to_bytes(4) * 2  # the header's width and height
    with pytest.raises(UserError, match="not an image|too many pixels"):
        decode_upload(bytes(bomb), [16])
    monkeypatch.setattr(image_store, "MAX_UPLOAD_PIXELS", 1000)
    with pytest.raises(UserError, match="too many pixels; use a smaller image"):
        decode_upload(encode_image("PNG", (50, 50)), [16])
    monkeypatch.setattr(image_store, "MAX_UPLOAD_BYTES", 100)
    with pytest.raises(UserError, match="larger than"):
        decode_upload(encode_image("PNG", (50, 50)) + bytes(100), [16])


def test_oldest_uploaded_image_is_evicted() -> None:
    store = ImageStore(None, [8])
    ids = [
        store.add_upload(encode_image("PNG", (8, 8)), f"  {index}\n name").id for index in range(MAX_STORED_UPLOADS + 1)
    ]
    assert store.find_image(ids[1]).name == "1 name" and len(store.uploads) == MAX_STORED_UPLOADS
    with pytest.raises(ImageNotFoundError, match="no longer stored"):
        store.find_image(ids[0])
    with pytest.raises(ImageNotFoundError):
        store.find_image("v1")


def test_validation_images_are_found_by_their_row(session: ExploreSession) -> None:
    sample = session.image_store.sample(4)
    assert [image.id for image in session.image_store.sample(4)] == [image.id for image in sample]
    assert {image.id for image in session.image_store.sample(4, seed=1)} != {image.id for image in sample}
    assert session.image_store.find_image(first_image_id(session)).name.endswith(")")
    with pytest.raises(ImageNotFoundError, match="no such validation image"):
        session.image_store.find_image("v999999")


def test_only_the_newest_request_of_a_page_is_queued() -> None:
    async def submit_requests() -> None:
        queue, gate, finished = LatestRequestQueue(max_pending=2), threading.Event(), []

        def work(name: str) -> str:
            gate.wait(10)
            finished.append(name)
            return name

        running = asyncio.create_task(queue.submit("a", lambda: work("running")))
        await asyncio.sleep(0.01)
        older = asyncio.create_task(queue.submit("a", lambda: work("older")))
        other = asyncio.create_task(queue.submit("b", lambda: work("other")))
        await asyncio.sleep(0)
        newer = asyncio.create_task(queue.submit("a", lambda: work("newer")))
        await asyncio.sleep(0)
        with pytest.raises(SupersededError):
            await older  # immediately: the first request is still running
        with pytest.raises(QueueFullError):
            await queue.submit("c", lambda: work("third"))
        gate.set()
        assert [await running, await other, await newer] == ["running", "other", "newer"]
        assert finished == ["running", "other", "newer"]
        with pytest.raises(ZeroDivisionError):
            await queue.submit("a", lambda: 1 // 0)
        assert await queue.submit("a", lambda: 5) == 5

    asyncio.run(submit_requests())
