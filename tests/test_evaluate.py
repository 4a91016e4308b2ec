"""Evaluation end to end on the tiny world, with a box that stands in for a real one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from featgan import evaluate as module
from featgan.data.pack import pack
from featgan.data.shards import ShardSet
from featgan.errors import UserError
from featgan.evaluate import evaluate_run
from featgan.measure import Pairs
from featgan.model import Model
from featgan.train import train
from tests.conftest import StandInBox, World


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(world.config(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture
def stand_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_blackbox", lambda spec, layer=None, device=None: world.box)


def values(document: dict[str, object]) -> dict[str, float]:
    measures = document["measures"]
    assert isinstance(measures, dict)
    return {name: entry["value"] for name, entry in measures.items()}


def test_it_writes_json_and_the_board_and_is_repeatable(trained: Path, stand_in: None) -> None:
    first = evaluate_run(trained, suite="quick", num_components=3)
    written = json.loads(Path(str(first["path"])).read_text())
    assert written["step"] == 4 and written["suite"] == "quick" and written["headline"] and written["statements"]
    assert {"shift_aggregate", "ccc", "label_agreement", "self_l1", "cycle_ssim", "frechet_edited"} <= values(
        first
    ).keys()
    assert len(first["components"]) == 3 and np.shape(first["crosstalk"]) == (3, 3)
    assert list((trained / "tensorboard" / "evaluation").glob("events*"))
    assert values(evaluate_run(trained, suite="quick", num_components=3)) == values(first)


def test_a_generator_that_copies_scores_as_the_identity_control(
    trained: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "edit", lambda self, images, condition: images)
    document = evaluate_run(trained, suite="quick", num_components=2)
    found = values(document)
    assert found["shift_aggregate"] == pytest.approx(0, abs=1e-3) and found["self_l1"] < 1e-3
    table = document["tables"][0]
    columns = table["columns"]
    for row in table["rows"]:
        if row[0] != "retrieval_mrr":
            assert row[columns.index("generator")] == row[columns.index("identity_copy")], row
    assert any("hardly reach" in sentence for sentence in document["statements"])
    assert any("not visible in pixels" in sentence for sentence in document["statements"])


def test_a_perfect_renderer_arrives(
    trained: Path, world: World, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stand-in box is linear in the image: adding its pseudo-inverse times the wanted change is a perfect edit.
    inverse = torch.linalg.pinv(world.box.weight)

    def edit(self: Model, images: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        change = (condition - world.box(images)[0]) @ inverse.T
        return images + torch.nn.functional.interpolate(change.view(-1, 3, 8, 8), size=(16, 16))

    monkeypatch.setattr(Model, "edit", edit)
    monkeypatch.setattr("featgan.measure.to_uint8", lambda images: images)
    monkeypatch.setattr(
        "featgan.measure.to_float", lambda images: images if images.is_floating_point() else images.float() / 127.5 - 1
    )
    found = values(evaluate_run(trained, suite="quick", num_components=3))
    assert found["shift_aggregate"] == pytest.approx(1, abs=1e-3) and found["ccc"] == pytest.approx(1, abs=1e-3)
    assert found["label_agreement"] == pytest.approx(1) and found["retrieval_top1"] == pytest.approx(1)
    assert found["monotonicity"] == pytest.approx(1) and found["diagonal_dominance"] > 0.99
    assert found["slope"] == pytest.approx(1, abs=1e-2)


def test_another_box_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("Other", (), {"sha256": "2" * 64})()
    monkeypatch.setattr(module, "load_blackbox", lambda spec, layer=None, device=None: other)
    with pytest.raises(UserError, match="not the box that the features were made with"):
        evaluate_run(trained, suite="quick")


def test_other_shards_in_the_place_of_those_trained_on_are_refused(
    trained: Path, world: World, tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {}
    for name, size, limit in (("larger", 32, None), ("fewer", 16, 50)):
        pack("affectnet", world.source, tmp_path / name, image_size=size, limit=limit, workers=1)
        others[name] = ShardSet.open(tmp_path / name)
    for other in others.values():
        monkeypatch.setattr(ShardSet, "open", lambda path, other=other: other)
        with pytest.raises(UserError, match="holds other shards than the run was trained on"):
            evaluate_run(trained, suite="quick")


def test_label_runs_are_measured_for_preservation_and_by_a_judge(world: World, tmp_path: Path, stand_in: None) -> None:
    dataset = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    run = train(world.config(tmp_path / "run", dataset=dataset))
    alone = evaluate_run(run, suite="quick")
    assert "self_l1" in values(alone) and any("without a judge" in sentence for sentence in alone["statements"])
    assert "label_agreement" in values(evaluate_run(run, suite="quick", blackboxes=["stand-in"]))


class AffectJudge(StandInBox):
    """Tells valence and arousal."""

    output_kind = "valence_arousal"
    class_names = ("valence", "arousal")

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, outputs = super().__call__(images)
        return features, outputs[:, :2]


def test_two_data_sets_are_judged_each_by_its_own_box(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = str(world.shards.path)
    run = train(
        world.config(
            tmp_path / "run",
            dataset={"shards": shards, "condition": {"kind": "expression"}},
            second_dataset={"shards": shards, "condition": {"kind": "valence_arousal"}},
        )
    )
    boxes = {"classes": world.box, "affect": AffectJudge()}
    monkeypatch.setattr(module, "load_blackbox", lambda spec, layer=None, device=None: boxes[spec])
    alone = values(evaluate_run(run, suite="quick"))
    assert {"self_l1", "second_self_l1"} <= alone.keys() and "label_agreement" not in alone
    document = evaluate_run(run, suite="quick", blackboxes=["affect", "classes"])
    assert {"label_agreement", "second_valence_ccc", "frechet_edited", "second_frechet_edited"} <= values(
        document
    ).keys()
    table = document["tables"][0]
    assert table["columns"][1:] == ["generator", "identity_copy", "shuffled_condition", "ceiling_real"]
    assert {"label_agreement", "second_valence_ccc"} <= {row[0] for row in table["rows"]}
    with pytest.raises(UserError, match="tells expression.*this run's labels are.*valence_arousal"):
        evaluate_run(run, suite="quick", blackboxes=["classes", "classes"])


def test_a_perfect_generator_of_labels_reaches_the_ceiling(
    world: World, tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    run = train(world.config(tmp_path / "run", dataset=dataset))
    split = world.shards.split("validation")
    real = split.decode(np.arange(len(split))).float() / 127.5 - 1
    decided = world.box(real)[1].argmax(1)
    # A judge whose answers are the labels, and a generator that answers with a real image of the class asked for.
    monkeypatch.setattr(split, "expression", decided.numpy())
    chosen = {int(code): real[int((decided == code).nonzero()[0])] for code in decided.unique()}
    monkeypatch.setattr(
        Model, "edit", lambda self, images, condition: torch.stack([chosen[int(row.argmax())] for row in condition])
    )
    monkeypatch.setattr(module.ShardSet, "open", lambda path: world.shards)
    document = evaluate_run(run, suite="quick", blackboxes=["stand-in"])
    rows = {
        row[0]: dict(zip(document["tables"][0]["columns"], row, strict=True)) for row in document["tables"][0]["rows"]
    }
    agreement = rows["label_agreement"]
    assert agreement["generator"] == agreement["ceiling_real"] == "1.000"
    assert float(agreement["identity_copy"]) < 0.6 > float(agreement["shuffled_condition"])


def test_pairs_are_fixed_and_no_image_is_its_own_target() -> None:
    pairs, again = Pairs.draw(50, 20), Pairs.draw(50, 20)
    assert np.array_equal(pairs.target_rows, again.target_rows)
    assert (pairs.source_rows != pairs.target_rows).all()
    assert not set(pairs.gallery_rows) & set(pairs.target_rows)


def test_a_judge_of_other_labels_and_a_probe_of_no_factors_are_refused(
    world: World, trained: Path, tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = {"shards": str(world.shards.path), "condition": {"kind": "valence_arousal"}}
    run = train(world.config(tmp_path / "run", dataset=dataset))
    with pytest.raises(UserError, match="tells expression"):
        evaluate_run(run, suite="quick", blackboxes=["stand-in"])
    with pytest.raises(UserError, match="reads none of the factors"):
        evaluate_run(trained, suite="quick", probe="stand-in", num_components=1)
