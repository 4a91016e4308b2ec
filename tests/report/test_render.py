"""Rendering: the targets of the edits, the choice of the images, and the files that are written."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from featgan.cli.main import cli
from featgan.errors import UserError
from featgan.features.space import FeatureSpace
from featgan.inference import training_data
from featgan.report import render
from featgan.report.edits.sources import read_image_folder, sample_rows
from featgan.report.edits.sweeps import FILM_QUANTILES
from featgan.report.render import render_run

SIZE, FEATURES, CLASSES = 16, 5, ("calm", "glad", "<b>x</b>")
HEAD_WEIGHT = torch.eye(3, FEATURES)
CONDITION_DIMS = {"features": FEATURES, "expression": 3, "valence_arousal": 2, "attributes": 2}


class FakeColorShiftModel:
    """Add the mean of the condition's first two numbers to the image, and record every condition."""

    device = "cpu"

    def __init__(self, kind: str, space: FeatureSpace, condition_dim: int | None = None) -> None:
        is_feature_conditioned = kind == "features"
        self.space = space
        self.metadata = SimpleNamespace(
            step=30,
            image_size=SIZE,
            encoding="standardized",
            class_names=CLASSES,
            dataset={"shards": "shards", "features": "cache"},
            condition_kind=kind,
            condition_dim=condition_dim or CONDITION_DIMS[kind],
            blackbox={"spec": "classifiers/linear", "layer": "last", "sha256": "ab" * 32}
            if is_feature_conditioned
            else None,
            attribute_names=("Smiling", "Young") if kind == "attributes" else (),
        )
        self.conditions: list[Tensor] = []
        self.sources: list[Tensor | None] = []

    def condition_input(self, target: Tensor, source: Tensor | None) -> Tensor:
        assert source is None or source.shape == target.shape
        self.sources.append(source)
        return target

    def encode(self, features: Tensor) -> Tensor:
        return self.space.encode(features, self.metadata.encoding)

    def edit_images(self, images: Tensor, condition: Tensor) -> Tensor:
        assert condition.shape == (len(images), self.metadata.condition_dim)
        self.conditions.append(condition)
        return (images + 0.2 * condition[:, :2].mean(1)[:, None, None, None]).clamp(-1, 1)


class FakeSplit:
    def __init__(self, name: str, count: int) -> None:
        generator = np.random.default_rng(len(name))
        self.name = name
        self.expression = (np.arange(count) % 3).astype(np.int16)
        self.keys = np.array([f"{name}-{index}" for index in range(count)])
        self.valence, self.arousal = generator.uniform(-1, 1, (2, count)).astype(np.float32)
        self.attributes = generator.integers(0, 2, (count, 2)).astype(np.int8)
        self.features = generator.normal(size=(count, FEATURES)).astype(np.float32)
        self.images = torch.from_numpy(generator.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.keys)

    def keys_of(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.keys[rows])

    def decode(self, rows: np.ndarray) -> Tensor:
        return self.images[rows]


class RenderFixture:
    """A run folder whose model, shards, cache and classifier are small fakes."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch, kind: str, condition_dim: int | None = None) -> None:
        self.run = run
        run.mkdir(exist_ok=True)
        splits = {"train": FakeSplit("train", 60), "validation": FakeSplit("validation", 12)}
        self.training, self.validation = splits["train"], splits["validation"]
        self.space = FeatureSpace.fit(torch.from_numpy(splits["train"].features))
        self.model = FakeColorShiftModel(kind, self.space, condition_dim)
        shards = SimpleNamespace(
            location="shards", path=Path("shards"), classes=CLASSES, fingerprint="cd" * 32,
            attribute_names=("Smiling", "Young"), has_validation=True,
            get_split=splits.__getitem__,
        )  # fmt: skip
        train_features = splits["train"].features
        arrays = SimpleNamespace(width=train_features.shape[1], gather_rows=lambda rows, flipped: train_features[rows])
        cache = SimpleNamespace(
            arrays={("train", "features"): arrays},
            head=(HEAD_WEIGHT, torch.zeros(3)), task="expression", class_names=CLASSES, output_dim=3, summary={},
            features=lambda split, rows, flipped: splits[split].features[rows],
            outputs=lambda split, rows: splits[split].features[rows] @ HEAD_WEIGHT.numpy().T,
        )  # fmt: skip
        monkeypatch.setattr(render, "load_model", lambda run, step, device: self.model)
        monkeypatch.setattr(training_data, "open_shards", lambda model: shards)
        monkeypatch.setattr(training_data, "open_cache", lambda model, shards: cache)
        self.classifier_sha256 = "ab" * 32
        monkeypatch.setattr(training_data, "load_blackbox", self.load_blackbox)

    def load_blackbox(self, spec: str, layer: str, device: torch.device, trusted: object) -> "RenderFixture":
        assert (spec, layer) == ("classifiers/linear", "last")
        return self

    spec = "classifiers/linear"
    device = torch.device("cpu")
    head = None
    task, output_dim, class_names = "expression", 3, CLASSES

    @property
    def sha256(self) -> str:
        return self.classifier_sha256

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean((2, 3)).repeat(1, 2)[:, :FEATURES], torch.zeros(len(images), 3)

    @property
    def render_folder(self) -> Path:
        return self.run / "renders" / "step-00000030"

    def render_folder_of(self, images: Path) -> Path:
        """Return the folder of the grids of the user's images."""
        return self.render_folder.with_name(f"{self.render_folder.name}-{images.name}")

    def grid_columns(self, name: str) -> list[str]:
        with Image.open(self.render_folder / f"{name}.png") as image:
            return image.text["Columns"].split(" | ")  # type: ignore[attr-defined]


@pytest.fixture
def fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RenderFixture:
    return RenderFixture(tmp_path / "run", monkeypatch, "features")


def save_image(path: Path, size: tuple[int, int] = (40, 20), color: str = "red") -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def test_every_direction_is_written_and_replaces_earlier_files(fixture: RenderFixture) -> None:
    (fixture.run / "renders" / "step-00000030").mkdir(parents=True)
    (fixture.render_folder / "old.png").touch()
    report = render_run(fixture.run, num_images=3, num_components=2)
    grids = {
        "component-01",
        "component-02",
        "class-means",
        "head-weights",
        "interpolation",
        "transfer",
        "projections",
    }
    assert {path.stem for path in fixture.render_folder.glob("*.png")} == grids
    animations = {"component-01.gif", "component-01.webp", "component-02.gif", "component-02.webp", "interpolation.gif"}
    assert {path.name for path in fixture.render_folder.iterdir() if path.suffix != ".png"} == animations | {
        "interpolation.webp"
    }
    assert report == fixture.run / "report.html"
    assert {path.name for path in fixture.run.iterdir()} == {"renders", "report.html"}
    assert [path.name for path in (fixture.run / "renders").iterdir()] == ["step-00000030"]


def test_page_shows_the_accuracy_of_the_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = RenderFixture(tmp_path, monkeypatch, "features")
    predicted = (fixture.validation.features @ HEAD_WEIGHT.numpy().T).argmax(1)
    fixture.validation.expression = np.where(np.arange(12) < 3, predicted, (predicted + 1) % 3).astype(np.int16)
    fixture.validation.expression[8:] = -1  # 3 of the 8 labels are predicted
    page = render_run(tmp_path, video=()).read_text()
    assert "It predicts the labeled class for 38\N{NO-BREAK SPACE}% of the validation images" in page


def test_reconstruction_uses_the_source_condition_and_is_the_last_column(fixture: RenderFixture) -> None:
    render_run(fixture.run, num_images=3, directions=["quantiles"], num_components=1)
    correct = np.flatnonzero(
        (fixture.validation.features @ HEAD_WEIGHT.numpy().T).argmax(1) == fixture.validation.expression
    )
    rows = sample_rows(fixture.validation.expression, np.arange(12), 3, 0, correct)
    assert set(rows[:2]) <= set(correct), "correctly classified images come first"
    source_conditions = fixture.model.encode(torch.from_numpy(fixture.validation.features[rows]))
    torch.testing.assert_close(fixture.model.conditions[0], source_conditions)
    levels = ["1 %", "10 %", "50 %", "90 %", "99 %"]
    differences = [f"\N{INCREMENT} {level}" for level in levels]
    assert fixture.grid_columns("component-01") == ["source", *levels, "reconstruction", *differences]


def test_classes_are_predictions_and_a_source_skips_its_predicted_class(fixture: RenderFixture) -> None:
    fixture.training.features[:, 2] -= 9  # no training image is predicted as the last class
    render_run(fixture.run, num_images=3, directions=["class"])
    predicted = (fixture.training.features @ HEAD_WEIGHT.numpy().T).argmax(1)
    means = torch.stack([torch.from_numpy(fixture.training.features[predicted == output]).mean(0) for output in (0, 1)])
    assert fixture.grid_columns("class-means") == ["source", *CLASSES[:2], "reconstruction"]
    sources, targets = (fixture.space.decode(condition, "standardized") for condition in fixture.model.conditions)
    for source, class_targets in zip(sources, targets.reshape(3, 2, FEATURES), strict=True):
        source_class = int((HEAD_WEIGHT @ source).argmax())
        shifts = means - (means[source_class] if source_class < 2 else means.mean(0))
        amounts = ((class_targets - source) * shifts).sum(1) / shifts.square().sum(1).clamp_min(1e-9)
        for output, amount in enumerate(amounts.tolist()):
            expected = source + amount * shifts[output]
            torch.testing.assert_close(class_targets[output], expected, atol=1e-3, rtol=1e-3)
            assert output == source_class or 0.99 < amount < 1.51
            is_confident = torch.softmax(HEAD_WEIGHT @ expected, 0)[output] >= 0.75
            assert output == source_class or is_confident or amount > 1.49


def test_quantile_sweeps_do_not_accumulate(fixture: RenderFixture) -> None:
    render_run(fixture.run, num_images=3, directions=["quantiles"], num_components=4)
    source_conditions, *sweeps = fixture.model.conditions
    levels = torch.stack([fixture.space.quantile(level) for level in FILM_QUANTILES])
    for component, conditions in enumerate(sweeps):
        whitened = fixture.space.project(fixture.space.decode(conditions, "standardized")).reshape(
            3, len(levels), FEATURES
        )
        expected = fixture.space.project(fixture.space.decode(source_conditions, "standardized"))[:, None].repeat(
            1, len(levels), 1
        )
        expected[:, :, component] = levels[:, component]
        torch.testing.assert_close(whitened, expected, atol=1e-4, rtol=1e-4)
    sources = torch.stack([source for source in fixture.model.sources[:4] if source is not None])
    assert torch.equal(sources, source_conditions.repeat_interleave(len(levels), 0).expand(4, -1, -1))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("expression", {"expressions"}),
        ("valence_arousal", {"valence-arousal", "valence", "arousal"}),
        ("attributes", {"attributes"}),
    ],
)
def test_label_conditions_have_their_sweeps(
    kind: str, names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = RenderFixture(tmp_path / "run", monkeypatch, kind)
    render_run(fixture.run, num_images=2)
    assert {path.stem for path in fixture.render_folder.glob("*.png")} == names
    assert all(fixture.grid_columns(name)[-1] == "reconstruction" for name in names)


def test_plane_has_valence_to_the_right_and_arousal_to_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = RenderFixture(tmp_path / "run", monkeypatch, "valence_arousal")
    render_run(fixture.run, num_images=1)
    plane = fixture.model.conditions[1].reshape(5, 5, 2)
    torch.testing.assert_close(plane[0, :, 0], torch.tensor([-1, -0.5, 0, 0.5, 1]))
    torch.testing.assert_close(plane[:, 0, 1], torch.tensor([1, 0.5, 0, -0.5, -1]))


def test_sweeps_of_two_data_sets_have_the_right_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = RenderFixture(tmp_path / "run", monkeypatch, "expression", condition_dim=3 + 2 + 2)
    fixture.run.joinpath("config.yaml").write_text(
        "dataset: {condition: {kind: expression}}\nsecond_dataset: {condition: {kind: valence_arousal}}\n"
    )
    fixture.model.metadata.names = (*CLASSES, "valence", "arousal")
    render_run(fixture.run, num_images=1)
    first, second = fixture.model.conditions[1], fixture.model.conditions[2]
    assert first.tolist() == [[1, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1, 0]]
    assert second[:, :3].abs().sum() == 0 and second[:, 5:].tolist() == [[0, 1]] * 25
    assert (fixture.render_folder / "second-valence-arousal.png").is_file()


def test_corrupted_user_image_is_skipped(
    fixture: RenderFixture, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    save_image(folder / "b.png", color="blue")
    save_image(folder / "c.jpg")
    (folder / "a.jpg").write_bytes(b"\xff\xd8 no image")
    content = save_image(folder / "d.jpg", (200, 200)).read_bytes()
    (folder / "d.jpg").write_bytes(content[: len(content) // 2])
    (fixture.run / "report.html").write_text("report of the validation images")
    page = render_run(fixture.run, images=folder, directions=["quantiles", "transfer"])
    assert page == fixture.run / "report-mine.html" and "validation" in (fixture.run / "report.html").read_text()
    assert "a.jpg" in "".join(capfd.readouterr().err.split())
    with Image.open(fixture.render_folder_of(folder) / "component-01.png") as image:
        assert image.text["Rows"] == "b.png | c.jpg"  # type: ignore[attr-defined]
    blue = torch.tensor([-1.0, -1, 1, -1, -1])
    torch.testing.assert_close(fixture.model.conditions[0][0], fixture.model.encode(blue))


def test_user_images_are_rendered_without_the_shards(
    fixture: RenderFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_missing(model: object) -> None:
        raise UserError("no shards")

    monkeypatch.setattr(training_data, "open_shards", raise_missing)
    save_image(tmp_path / "a.png")
    render_run(fixture.run, images=tmp_path, num_components=1)
    assert {path.stem for path in fixture.render_folder_of(tmp_path).glob("*.png")} == {"component-01", "projections"}
    with pytest.raises(UserError, match="no shards"):
        render_run(fixture.run)


def test_folder_without_readable_images_is_rejected(fixture: RenderFixture, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("no image")
    with pytest.raises(UserError, match="contains no image files"):
        render_run(fixture.run, images=tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        render_run(fixture.run, images=tmp_path / "absent")
    assert not (fixture.run / "renders").exists() and not (fixture.run / "report.html").exists()


def test_another_classifier_is_rejected(fixture: RenderFixture, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    fixture.classifier_sha256 = "00" * 32
    with pytest.raises(UserError, match="classifiers/linear: not the classifier that the features were extracted with"):
        render_run(fixture.run, images=tmp_path)


def test_directions_that_do_not_apply_are_rejected(
    fixture: RenderFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--directions attributes: not a direction of a 'features' condition"):
        render_run(fixture.run, directions=["attributes"])
    with pytest.raises(UserError, match="it needs at least two images"):
        render_run(fixture.run, directions=["transfer"], num_images=1)
    save_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="--images: the attributes of these images are not known"):
        render_run(RenderFixture(tmp_path / "other", monkeypatch, "attributes").run, images=tmp_path)


def test_unusable_files_are_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_image(tmp_path / "narrow.png", (8, 4))
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "._small.png").write_text("text")
    os.mkfifo(tmp_path / "pipe.png")
    save_image(tmp_path / "small.PNG", (8, 10))
    images, names = read_image_folder(tmp_path, 4, 10)
    assert names == ("small.PNG",) and images.shape == (1, 3, 4, 4)
    assert [message.split("/")[-1] for message in caplog.messages] == [
        "narrow.png: smaller than 8 pixels; use a larger image",
        "pipe.png: not a regular file; give an image file",
        "text.jpg: not an image; use JPEG, PNG, WebP, GIF, BMP, TIFF or PPM",
    ]
    with pytest.raises(UserError, match="contains no image files; use JPEG"):
        (tmp_path / "empty").mkdir()
        read_image_folder(tmp_path / "empty", 4, 10)


def test_error_for_a_folder_of_class_folders_names_one_of_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        save_image(tmp_path / name / "1.png", (10, 10))
    with pytest.raises(UserError, match=r"only in its folders; give one of them, such as .*/cat$"):
        read_image_folder(tmp_path, 4, 10)


def test_images_are_center_cropped_rotated_upright_and_flattened_on_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (10, 0, 20, 10))
    image.save(tmp_path / "a.png")
    rotated = Image.new("RGB", (10, 10), "black")
    rotated.paste("white", (0, 0, 10, 5))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    rotated.save(tmp_path / "b.png", exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.png")
    images, _ = read_image_folder(tmp_path, 10, 10)
    assert (images[0] == 255).all()
    assert (images[1, :, 0] == 0).all() and (images[1, :, -1] == 255).all()
    assert (images[2] == 255).all()


def test_sample_depends_on_the_seed_and_covers_the_classes() -> None:
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    usable = np.arange(1, 100)
    rows = sample_rows(labels, usable, 6, seed=3)
    assert sorted(labels[rows]) == [0, 0, 1, 1, 2, 2] and len(set(rows)) == 6 and 0 not in rows
    assert (rows == sample_rows(labels, usable, 6, seed=3)).all()
    assert (rows != sample_rows(labels, usable, 6, seed=4)).any()
    assert len(sample_rows(labels, usable[:2], 6, seed=3)) == 2
    preferred = np.array([5, 6, 9, 11])
    rows = sample_rows(labels, usable, 6, 3, preferred)
    assert set(rows[: len(preferred)]) == set(preferred) and len(set(rows)) == 6


def test_component_names_are_shown_stored_and_checked_first(fixture: RenderFixture) -> None:
    with pytest.raises(UserError, match="the run has no component 9"):
        render_run(fixture.run, component_names=["9=smile"])
    assert not list(fixture.run.iterdir()) and not fixture.model.conditions
    page = render_run(
        fixture.run, num_images=2, num_components=2, directions=["quantiles"], component_names=["2=raised brows"]
    )
    assert "Component 2: raised brows" in page.read_text() and ">raised brows</a>" in page.read_text()
    next_page = render_run(fixture.run, num_images=2, num_components=2, directions=["quantiles"])
    assert "--component-name &#39;2=raised brows&#39;" in next_page.read_text()


def test_component_names_are_rejected_for_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = RenderFixture(tmp_path / "run", monkeypatch, "expression")
    with pytest.raises(UserError, match="this run is label-conditioned and has no components"):
        render_run(fixture.run, component_names=["1=smile"])


def test_the_classifier_predicts_every_frame_with_a_slider(fixture: RenderFixture) -> None:
    num_predicted: list[int] = []
    predict = fixture.__call__

    class CountingFixture(RenderFixture):
        def __call__(self, images: torch.Tensor) -> tuple[Tensor, Tensor]:
            num_predicted.append(len(images))
            return predict(images)

    fixture.__class__ = CountingFixture
    render_run(fixture.run, num_images=3, num_components=2, directions=["quantiles", "transfer"])
    # The transfers have no slider; the outputs for the sources are shown, too.
    assert sum(num_predicted) == 2 * 3 * len(FILM_QUANTILES) + 3


def test_run_without_its_classifier_is_rendered_with_a_warning(
    fixture: RenderFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    fixture.classifier_sha256 = "00" * 32
    page = render_run(fixture.run, num_images=2, num_components=1, directions=["quantiles"]).read_text()
    assert "the report will have no predictions for the edited images" in " ".join(capfd.readouterr().err.split())
    assert 'class="outputs"' not in page and "of the output variance" in page  # the cache has the head


def test_only_the_selected_animations_are_written(fixture: RenderFixture) -> None:
    render_run(fixture.run, num_images=2, num_components=1, directions=["quantiles"], video=[])
    assert {path.suffix for path in fixture.render_folder.iterdir()} == {".png"}
    with pytest.raises(UserError, match="--video avi"):
        render_run(fixture.run, video=["avi"])


def test_command_accepts_names_and_kinds_of_animation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def record_call(*arguments: object, **options: object) -> str:
        calls.append(options)
        return "page"

    monkeypatch.setattr(render, "render_run", record_call)
    for options in (
        [],
        ["--component-name", "1=smile", "--component-name", "2=brows", "--video", "webp"],
        ["--video", "none"],
    ):
        assert CliRunner().invoke(cli, ["render", "run", *options]).exit_code == 0
    assert [call["video"] for call in calls] == [["gif", "webp"], ["webp"], []]
    assert calls[1]["component_names"] == ("1=smile", "2=brows")
    assert CliRunner().invoke(cli, ["render", "run", "--video", "avi"]).exit_code == 2
