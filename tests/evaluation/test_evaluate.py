"""Evaluation end to end on the tiny world, with a box that stands in for a real one."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from featgan.data.packing.pack import pack
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.evaluation import evaluate as module
from featgan.evaluation import evaluators
from featgan.evaluation.document import print_evaluation
from featgan.evaluation.edit_metrics import Pairs
from featgan.evaluation.evaluate import evaluate_run
from featgan.evaluation.sweeps import EQUAL_REQUESTS, EQUAL_SOURCES
from featgan.inference import training_data
from featgan.inference.model import Model
from featgan.metrics.baselines import nearest_rows
from featgan.metrics.bootstrap import Floats
from featgan.system.images import to_float
from featgan.training.train import train
from tests.conftest import StandInBox, World, write_features


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(world.config(tmp_path_factory.mktemp("runs") / "run"))


class Twin(StandInBox):
    """Sees exactly what the stand-in sees, and yet is another box."""

    spec = "twin"
    sha256 = "2" * 64


class Stranger(Twin):
    """Reads the same decisions off other directions of the picture."""

    spec = "stranger"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(self.weight.shape, generator=torch.Generator().manual_seed(6))


@pytest.fixture
def stand_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    witnesses = {"stand-in": world.box, "twin": Twin(), "stranger": Stranger()}
    for opener in (module, training_data):
        monkeypatch.setattr(opener, "load_blackbox", lambda spec, layer=None, device=None: world.box)
    monkeypatch.setattr(evaluators, "load_blackbox", lambda spec, layer=None, device=None: witnesses[spec])


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
    assert written["arguments"] == ["--suite", "quick", "--components", "3"]
    assert len(first["components"]) == 3 and np.shape(first["crosstalk"]) == (3, 3)
    assert list((trained / "tensorboard" / "evaluation").glob("events*"))
    assert values(evaluate_run(trained, suite="quick", num_components=3)) == values(first)


def test_a_generator_that_copies_scores_as_the_identity_control(
    trained: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "edit", lambda self, images, condition: images)
    document = evaluate_run(trained, suite="quick", num_components=2, witness="stranger")
    found = values(document)
    assert found["shift_aggregate"] == pytest.approx(0, abs=1e-3) and found["self_l1"] < 1e-3
    assert found["diversity_ratio"] == pytest.approx(1) and found["witness_edit_cosine"] == pytest.approx(1)
    assert_same(found, document["controls"]["identity_copy"])
    assert {table["family"] for table in document["tables"]} == {
        "faithfulness", "sufficiency", "witness", "traversal", "preservation", "realism", "diversity",
        "regions_class", "regions_octant", "regions_component",
    }  # fmt: skip
    for table in document["tables"]:
        start = ["measure", "generator", "95 %", "images"]
        regional = ["region", "measure", "generator", "95 %", "pairs"]
        assert table["columns"][: len(start)] == start or table["columns"][: len(regional)] == regional
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    for region in document["regions"]:
        assert_same(only_values(region["measures"]), region["controls"]["identity_copy"])
    assert any("hardly reach" in sentence for sentence in document["statements"])
    assert "Not visible to the box in the pixels: components 1 (slope 0.00), 2 (slope 0.00)." in document["statements"]


def only_values(measures: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: entry["value"] for name, entry in measures.items()}


def assert_same(found: dict[str, float], control: dict[str, dict[str, float]]) -> None:
    """A generator scores as the control that does what it does, on every measure that both have."""
    assert control
    for name, entry in control.items():
        if name != "retrieval_mrr" and not name.endswith("psnr") and entry["value"] is not None:
            assert found[name] == pytest.approx(entry["value"], abs=2e-3, rel=1e-3), name


def test_a_generator_that_returns_the_nearest_real_image_scores_as_that_control(
    trained: Path, world: World, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = world.shards.split("train")
    known = world.cache.features("train", np.arange(len(training))).astype(np.float64)

    def edit(self: Model, images: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        assert self.space is not None
        wanted = self.space.decode(condition, self.encoding).double().numpy()
        return to_float(training.decode(nearest_rows(self.space, wanted, known)))

    monkeypatch.setattr(Model, "edit", edit)
    document = evaluate_run(trained, suite="quick", num_components=2, witness="twin")
    found, control = values(document), document["controls"]["nearest_real"]
    assert {"slope", "sufficiency_at_1", "witness_agreement", "self_l1", "kid_edited"} <= control.keys()
    assert_same(found, control)
    assert found["diversity_ratio"] == 0 and found["shift_aggregate"] > 0.1
    for region in document["regions"]:
        assert_same(only_values(region["measures"]), region["controls"]["nearest_real"])
    assert any("different sources become one picture" in sentence for sentence in document["statements"])


def test_a_generator_that_ignores_the_condition_scores_as_the_shuffled_control(
    trained: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "edit", lambda self, images, condition: (images + 0.5).clamp(-1, 1))
    document = evaluate_run(trained, suite="quick", num_components=2, witness="stranger")
    found = values(document)
    assert_same(found, document["controls"]["shuffled_condition"])
    assert found["slope"] == found["monotonicity"] == 0
    for region in document["regions"]:
        assert_same(only_values(region["measures"]), region["controls"]["shuffled_condition"])
    tints = [region["measures"]["tint"] for region in document["regions"] if region["by"] == "class"]
    assert min(tint["low"] for tint in tints) > 1, "all edits are brighter, towards every class"
    assert not any(
        remark["about"] == "faithfulness" and remark["verdict"] == "supports" for remark in document["remarks"]
    )


def test_real_images_are_real_and_move_but_keep_nothing(trained: Path, stand_in: None) -> None:
    control = evaluate_run(trained, suite="quick", num_components=2)["controls"]["nearest_real"]
    assert control["self_l1"]["value"] > 0.05 < control["edit_l1"]["value"]
    assert control["shift_aggregate"]["value"] > 0.1 < control["slope"]["value"]


def test_metrics_are_also_a_line_of_the_runs_scalars(trained: Path, stand_in: None) -> None:
    document = evaluate_run(trained, suite="quick", num_components=2)
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 4 and line["evaluation/ccc"] == values(document)["ccc"]


@pytest.mark.parametrize("request_kind", ["target", "change"])
def test_a_perfect_renderer_arrives(
    trained: Path, world: World, stand_in: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_kind: str
) -> None:
    # The stand-in box is linear in the image: adding its pseudo-inverse times the wanted change is a perfect edit.
    inverse = torch.linalg.pinv(world.box.weight)
    if request_kind == "change":
        trained = train(world.config(tmp_path / "run", generator={"request": "change"}))

    def edit(self: Model, images: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        target = condition[:, : world.box.feature_dim]
        # One that is told the change need not look at the picture, so what it is told must be of that very picture.
        wanted = target - world.box(images)[0] if request_kind == "target" else condition[:, world.box.feature_dim :]
        change = wanted @ inverse.T
        return images + torch.nn.functional.interpolate(change.view(-1, 3, 8, 8), size=(16, 16))

    monkeypatch.setattr(Model, "edit", edit)
    # Unrounded: small pictures have few levels, and a large wish leaves their range.
    monkeypatch.setattr("featgan.inference.editor.to_uint8", lambda images: images)
    floats = lambda images: images if images.is_floating_point() else images.float() / 127.5 - 1  # noqa: E731
    monkeypatch.setattr("featgan.inference.editor.to_float", floats)
    document = evaluate_run(trained, suite="quick", num_components=3, witness="twin")
    found = values(document)
    assert found["shift_aggregate"] == pytest.approx(1, abs=1e-3) and found["ccc"] == pytest.approx(1, abs=1e-3)
    assert found["label_agreement"] == pytest.approx(1) and found["retrieval_top1"] == pytest.approx(1)
    assert found["monotonicity"] == pytest.approx(1) and found["diagonal_dominance"] > 0.99
    assert found["slope"] == pytest.approx(1, abs=1e-2)
    assert found["projection_02_ccc"] == pytest.approx(1, abs=1e-2)
    assert found["projection_00_distance"] == pytest.approx(0, abs=1e-2)
    for region in document["regions"]:
        name = "own_shift" if region["by"].startswith("component") else "shift_aggregate"
        assert region["measures"][name]["value"] == pytest.approx(1, abs=1e-2), region["region"]
    # A box that sees the same confirms it wholly; one that looks at other directions of the picture does not.
    assert found["witness_agreement"] == found["box_agreement"] == found["change_agreement"] == pytest.approx(1)
    assert found["witness_gap"] == 0 and found["witness_shift_aggregate"] == pytest.approx(1, abs=1e-2)
    deceived = values(evaluate_run(trained, suite="quick", num_components=1, witness="stranger"))
    assert deceived["box_agreement"] == pytest.approx(1) and deceived["witness_agreement"] < 0.7
    assert abs(deceived["witness_shift_aggregate"]) < 0.3


def test_the_witness_must_be_another_box_and_a_run_on_labels_has_none(
    trained: Path, world: World, tmp_path: Path, stand_in: None
) -> None:
    with pytest.raises(UserError, match="is the black box itself"):
        evaluate_run(trained, suite="quick", witness="stand-in")
    dataset = {"shards": str(world.shards.path), "condition": {"kind": "expression"}}
    run = train(world.config(tmp_path / "run", dataset=dataset))
    with pytest.raises(UserError, match="--witness: a run on labels has a judge for that"):
        evaluate_run(run, suite="quick", witness="twin")


def test_a_witness_is_asked_once_for_each_set_of_pictures(
    trained: Path, world: World, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []

    class Counting(Twin):
        def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            shown.append(len(images))
            return super().__call__(images)

    monkeypatch.setattr(evaluators, "load_blackbox", lambda spec, layer=None, device=None: Counting())
    count = len(world.shards.split("validation"))
    document = evaluate_run(trained, suite="quick", num_components=1, witness="counting")
    # Sources, edits, edits to other requests, reconstructions, nearest real images; then the edits to equal requests.
    assert sum(shown) == 5 * count + EQUAL_REQUESTS * min(count, EQUAL_SOURCES)
    assert document["witness"] == {"spec": "twin", "layer": "hidden", "sha256": "2" * 64, "features": None}


def test_what_a_witness_said_before_is_read_from_its_cache(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = evaluators.Witness(world.box, world.shards)
    assert witness.cache is not None and witness.cache.name.startswith("stand-in")
    rows = np.array([3, 1])
    read = witness.real("validation", rows)
    witness.cache = None
    asked = witness.real("validation", rows)
    assert read.features == pytest.approx(asked.features, rel=1e-4)


def test_a_box_of_valence_and_arousal_is_measured_by_octant_and_with_witnesses_of_its_kind_and_of_another(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, twin = AffectJudge(), AffectJudge()
    twin.sha256 = "2" * 64
    write_features(world.shards, box, "affect")
    run = train(world.config(tmp_path / "run", dataset={"shards": str(world.shards.path), "features": "affect"}))
    boxes = {"twin": twin, "expression": world.box}
    monkeypatch.setattr(training_data, "load_blackbox", lambda spec, layer=None, device=None: box)
    monkeypatch.setattr(evaluators, "load_blackbox", lambda spec, layer=None, device=None: boxes[spec])
    document = evaluate_run(run, suite="quick", num_components=1, witness="twin")
    found = values(document)
    assert found["witness_valence_ccc"] == pytest.approx(found["valence_ccc"], abs=1e-3)
    assert document["controls"]["ceiling_real"]["witness_valence_ccc"]["value"] == pytest.approx(1, abs=1e-3)
    assert found["asked_edit_l1"] > 0 and "witness_agreement" not in found
    octants = [region for region in document["regions"] if region["by"] == "octant"]
    assert octants and all("valence_arousal_rmse" in region["measures"] for region in octants)
    document = evaluate_run(run, suite="quick", num_components=1, witness="expression")
    found = values(document)
    assert {"witness_shift_aggregate", "witness_frechet_edited", "witness_edit_cosine"} <= found.keys()
    assert any("tells other things than the box" in sentence for sentence in document["statements"])


def test_weights_of_the_users_add_their_measures_and_everything_fits_the_terminal(
    trained: Path, tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(images: torch.Tensor) -> Floats:
        return images.double().mean((2, 3)).numpy()

    def distance(first: torch.Tensor, second: torch.Tensor) -> Floats:
        return np.abs(features(first) - features(second)).mean(1)

    monkeypatch.setattr(evaluators, "Inception", lambda path, device: features)
    monkeypatch.setattr(evaluators, "Lpips", lambda path, device: distance)
    (tmp_path / "weights").write_bytes(b"weights")
    weights = {"inception": tmp_path / "weights", "lpips": tmp_path / "weights"}
    document = evaluate_run(trained, suite="quick", num_components=2, witness="twin", **weights)
    assert {"inception_frechet_edited", "inception_kid_edited", "self_lpips", "edit_lpips"} <= values(document).keys()
    assert {"inception_kid_edited", "edit_lpips"} <= document["controls"]["nearest_real"].keys()
    assert document["controls"]["identity_copy"]["edit_lpips"]["value"] == 0
    assert {entry["file"] for entry in document["weights"].values()} == {"weights"}
    shown = Console(width=80, file=io.StringIO(), record=True)
    print_evaluation(json.loads(json.dumps(document)), shown)
    text = shown.export_text()
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text
    assert {"beside controls", "where real ones are", "a second box"} <= set(
        re.findall(r"^ (\w+(?: \w+)+)  ", text, re.M)
    )


def test_a_count_bounds_pairs_and_sweeps() -> None:
    assert module.suite_size("quick", None) == (2000, 128)
    assert module.suite_size("quick", 256) == (256, 32)
    assert module.suite_size("standard", 5) == (5, 1)
    assert module.suite_size("quick", 100_000) == (2000, 128)


def test_a_shorter_evaluation_is_named_after_its_count(trained: Path, stand_in: None) -> None:
    names = [Path(evaluate_run(trained, suite="quick", count=count)["path"]).name for count in (4, 2_000, 100_000)]
    assert names == ["step-00000004-quick-4.json", "step-00000004-quick.json", "step-00000004-quick.json"]
    assert all(module.find_evaluation(trained, 4, "quick", count) for count in (4, 100_000, None))
    assert module.find_evaluation(trained, 4, "quick", 5) is None


def test_another_box_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("Other", (), {"sha256": "2" * 64})()
    monkeypatch.setattr(training_data, "load_blackbox", lambda spec, layer=None, device=None: other)
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

    sha256 = "3" * 64
    output_dim = 2
    output_kind = "valence_arousal"
    class_names = ("valence", "arousal")

    def __init__(self) -> None:
        super().__init__()
        self.head = (self.head[0][:2], self.head[1][:2])


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
    controls = ["identity_copy", "shuffled_condition", "ceiling_real"]
    assert table["columns"] == ["measure", "generator", "95 %", "images", *controls]
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
