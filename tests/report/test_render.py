"""Rendering: what is asked of the generator, which images are taken, what is written."""

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
from featgan.report.edits import sources as report_sources
from featgan.report.edits.sources import read_folder, sample_rows
from featgan.report.edits.sweeps import FILM_LEVELS
from featgan.report.render import render_run

SIZE, FEATURES, CLASSES = 16, 5, ("calm", "glad", "<b>x</b>")
HEAD = torch.eye(3, FEATURES)
DIMS = {"features": FEATURES, "expression": 3, "valence_arousal": 2, "attributes": 2}


class TintModel:
    """Adds the mean of the condition's first two numbers to the image, and remembers every condition."""

    step = 30
    image_size = SIZE
    device = "cpu"
    encoding = "standardized"
    class_names = CLASSES
    dataset = {"shards": "shards", "features": "box"}

    def __init__(self, kind: str, space: FeatureSpace, condition_dim: int | None = None) -> None:
        self.condition_kind = kind
        self.space = space
        self.condition_dim = condition_dim or DIMS[kind]
        self.blackbox = {"spec": "boxes/tint", "layer": "last", "sha256": "ab" * 32} if kind == "features" else None
        self.attribute_names = ("Smiling", "Young") if kind == "attributes" else ()
        self.asked: list[Tensor] = []
        self.own: list[Tensor | None] = []

    def ask(self, wanted: Tensor, own: Tensor | None) -> Tensor:
        assert own is None or own.shape == wanted.shape
        self.own.append(own)
        return wanted

    def encode(self, features: Tensor) -> Tensor:
        return self.space.encode(features, self.encoding)

    def edit(self, images: Tensor, condition: Tensor) -> Tensor:
        assert condition.shape == (len(images), self.condition_dim)
        self.asked.append(condition)
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

    def decode(self, rows: np.ndarray) -> Tensor:
        return self.images[rows]


class World:
    """A run folder whose model, shards, cache and box are small fakes."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch, kind: str, condition_dim: int | None = None) -> None:
        self.run = run
        run.mkdir(exist_ok=True)
        splits = {"train": FakeSplit("train", 60), "validation": FakeSplit("validation", 12)}
        self.training, self.validation = splits["train"], splits["validation"]
        self.space = FeatureSpace.fit(torch.from_numpy(splits["train"].features))
        self.model = TintModel(kind, self.space, condition_dim)
        shards = SimpleNamespace(
            path=Path("shards"), classes=CLASSES, fingerprint="cd" * 32, attribute_names=("Smiling", "Young"),
            split=splits.__getitem__,
        )  # fmt: skip
        cache = SimpleNamespace(
            head=(HEAD, torch.zeros(3)), output_kind="expression", class_names=CLASSES, output_dim=3,
            features=lambda split, rows, mirrored: splits[split].features[rows],
            outputs=lambda split, rows: splits[split].features[rows] @ HEAD.numpy().T,
        )  # fmt: skip
        monkeypatch.setattr(render, "load_model", lambda run, step, device: self.model)
        monkeypatch.setattr(training_data, "open_shards", lambda model: shards)
        monkeypatch.setattr(training_data, "open_cache", lambda model, shards: cache)
        self.box_sha256 = "ab" * 32
        monkeypatch.setattr(render, "load_blackbox", self.load_blackbox)

    def load_blackbox(self, spec: str, layer: str, device: str) -> "World":
        assert (spec, layer) == ("boxes/tint", "last")
        return self

    spec = "boxes/tint"
    device = torch.device("cpu")
    head = None
    output_kind, output_dim, class_names = "expression", 3, CLASSES

    @property
    def sha256(self) -> str:
        return self.box_sha256

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean((2, 3)).repeat(1, 2)[:, :FEATURES], torch.zeros(len(images), 3)

    @property
    def folder(self) -> Path:
        return self.run / "renders" / "step-00000030"

    def folder_of(self, images: Path) -> Path:
        """Where pictures of a user's images lie."""
        return self.folder.with_name(f"{self.folder.name}-{images.name}")

    def columns(self, name: str) -> list[str]:
        with Image.open(self.folder / f"{name}.png") as image:
            return image.text["Columns"].split(" | ")  # type: ignore[attr-defined]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path / "run", monkeypatch, "features")


def save_picture(path: Path, size: tuple[int, int] = (40, 20), colour: str = "red") -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def test_every_direction_is_written_and_a_second_render_replaces_the_first(world: World) -> None:
    (world.run / "renders" / "step-00000030").mkdir(parents=True)
    (world.folder / "old.png").touch()
    report = render_run(world.run, num_images=3, num_components=2)
    pictures = {
        "component-01",
        "component-02",
        "class-means",
        "head-weights",
        "interpolation",
        "transfer",
        "projections",
    }
    assert {path.stem for path in world.folder.glob("*.png")} == pictures | {"projections"}
    moving = {"component-01.gif", "component-01.webp", "component-02.gif", "component-02.webp", "interpolation.gif"}
    assert {path.name for path in world.folder.iterdir() if path.suffix != ".png"} == moving | {"interpolation.webp"}
    assert report == world.run / "report.html"
    assert {path.name for path in world.run.iterdir()} == {"renders", "report.html"}
    assert [path.name for path in (world.run / "renders").iterdir()] == ["step-00000030"]


def test_the_page_says_how_often_the_box_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch, "features")
    own = (world.validation.features @ HEAD.numpy().T).argmax(1)
    world.validation.expression = np.where(np.arange(12) < 3, own, (own + 1) % 3).astype(np.int16)
    world.validation.expression[8:] = -1  # 3 of the 8 that have a label
    assert "rightly in 38 % of the validation pictures" in render_run(tmp_path, video=()).read_text()


def test_reconstruction_asks_for_the_untouched_condition_and_stands_last(world: World) -> None:
    render_run(world.run, num_images=3, directions=["quantiles"], num_components=1)
    told = np.flatnonzero((world.validation.features @ HEAD.numpy().T).argmax(1) == world.validation.expression)
    rows = sample_rows(world.validation.expression, np.arange(12), 3, 0, told)
    assert set(rows[:2]) <= set(told), "pictures that the box misreads show less"
    own = world.model.encode(torch.from_numpy(world.validation.features[rows]))
    torch.testing.assert_close(world.model.asked[0], own)
    levels = ["1 %", "10 %", "50 %", "90 %", "99 %"]
    changes = [f"\N{INCREMENT} {level}" for level in levels]
    assert world.columns("component-01") == ["source", *levels, "reconstruction", *changes]


def test_classes_are_the_boxes_own_answers_and_a_source_leaves_its_own(world: World) -> None:
    world.training.features[:, 2] -= 9  # the last answer is given to no training image
    render_run(world.run, num_images=3, directions=["class"])
    answers = (world.training.features @ HEAD.numpy().T).argmax(1)
    means = torch.stack([torch.from_numpy(world.training.features[answers == output]).mean(0) for output in (0, 1)])
    assert world.columns("class-means") == ["source", *CLASSES[:2], "reconstruction"]
    own, asked = (world.space.decode(each, "standardized") for each in world.model.asked)
    for source, moved in zip(own, asked.reshape(3, 2, FEATURES), strict=True):
        answer = int((HEAD @ source).argmax())
        way = means - (means[answer] if answer < 2 else means.mean(0))
        amounts = ((moved - source) * way).sum(1) / way.square().sum(1).clamp_min(1e-9)
        for output, amount in enumerate(amounts.tolist()):
            expected = source + amount * way[output]
            torch.testing.assert_close(moved[output], expected, atol=1e-3, rtol=1e-3)
            assert output == answer or 0.99 < amount < 1.51
            sure = torch.softmax(HEAD @ expected, 0)[output] >= 0.75
            assert output == answer or sure or amount > 1.49


def test_quantile_sweeps_do_not_accumulate(world: World) -> None:
    render_run(world.run, num_images=3, directions=["quantiles"], num_components=4)
    own, *sweeps = world.model.asked
    levels = torch.stack([world.space.quantile(level) for level in FILM_LEVELS])
    for component, asked in enumerate(sweeps):
        whitened = world.space.project(world.space.decode(asked, "standardized")).reshape(3, len(levels), FEATURES)
        expected = world.space.project(world.space.decode(own, "standardized"))[:, None].repeat(1, len(levels), 1)
        expected[:, :, component] = levels[:, component]
        torch.testing.assert_close(whitened, expected, atol=1e-4, rtol=1e-4)
    told = torch.stack([each for each in world.model.own[:4] if each is not None])
    assert torch.equal(told, own.repeat_interleave(len(levels), 0).expand(4, -1, -1)), "each source's own"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("expression", {"expressions"}),
        ("valence_arousal", {"valence-arousal", "valence", "arousal"}),
        ("attributes", {"attributes"}),
    ],
)
def test_label_conditions(kind: str, names: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "run", monkeypatch, kind)
    render_run(world.run, num_images=2)
    assert {path.stem for path in world.folder.glob("*.png")} == names
    assert all(world.columns(name)[-1] == "reconstruction" for name in names)


def test_the_plane_has_valence_to_the_right_and_arousal_upwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "run", monkeypatch, "valence_arousal")
    render_run(world.run, num_images=1)
    plane = world.model.asked[1].reshape(5, 5, 2)
    torch.testing.assert_close(plane[0, :, 0], torch.tensor([-1, -0.5, 0, 0.5, 1]))
    torch.testing.assert_close(plane[:, 0, 1], torch.tensor([1, 0.5, 0, -0.5, -1]))


def test_two_data_sets_get_the_mask_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "run", monkeypatch, "expression", condition_dim=3 + 2 + 2)
    world.run.joinpath("config.yaml").write_text(
        "dataset: {condition: {kind: expression}}\nsecond_dataset: {condition: {kind: valence_arousal}}\n"
    )
    world.model.card = SimpleNamespace(names=(*CLASSES, "valence", "arousal"))  # type: ignore[attr-defined]
    render_run(world.run, num_images=1)
    first, second = world.model.asked[1], world.model.asked[2]
    assert first.tolist() == [[1, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1, 0]]
    assert second[:, :3].abs().sum() == 0 and second[:, 5:].tolist() == [[0, 1]] * 25
    assert (world.folder / "second-valence-arousal.png").is_file()


def test_the_users_images_with_a_broken_one(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    save_picture(folder / "b.png", colour="blue")
    save_picture(folder / "c.jpg")
    (folder / "a.jpg").write_bytes(b"\xff\xd8 no image")
    content = save_picture(folder / "d.jpg", (200, 200)).read_bytes()
    (folder / "d.jpg").write_bytes(content[: len(content) // 2])
    (world.run / "report.html").write_text("that of the validation images")
    page = render_run(world.run, images=folder, directions=["quantiles", "transfer"])
    assert page == world.run / "report-mine.html" and "validation" in (world.run / "report.html").read_text()
    assert "a.jpg" in "".join(capfd.readouterr().err.split())
    with Image.open(world.folder_of(folder) / "component-01.png") as image:
        assert image.text["Rows"] == "b.png | c.jpg"  # type: ignore[attr-defined]
    blue = torch.tensor([-1.0, -1, 1, -1, -1])
    torch.testing.assert_close(world.model.asked[0][0], world.model.encode(blue))


def test_without_the_shards_the_users_images_are_still_rendered(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(model: object) -> None:
        raise UserError("no shards")

    monkeypatch.setattr(training_data, "open_shards", absent)
    save_picture(tmp_path / "a.png")
    render_run(world.run, images=tmp_path, num_components=1)
    assert {path.stem for path in world.folder_of(tmp_path).glob("*.png")} == {"component-01", "projections"}
    with pytest.raises(UserError, match="no shards"):
        render_run(world.run)


def test_a_folder_without_readable_images(world: World, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("no image")
    with pytest.raises(UserError, match="none of its 1 files is a readable"):
        render_run(world.run, images=tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        render_run(world.run, images=tmp_path / "absent")
    assert not (world.run / "renders").exists() and not (world.run / "report.html").exists()


def test_another_box_is_refused(world: World, tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    world.box_sha256 = "00" * 32
    with pytest.raises(UserError, match="boxes/tint: not the black box of this run"):
        render_run(world.run, images=tmp_path)


def test_directions_that_do_not_apply(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--directions attributes: not a direction of a 'features' condition"):
        render_run(world.run, directions=["attributes"])
    with pytest.raises(UserError, match="two images or more"):
        render_run(world.run, directions=["transfer"], num_images=1)
    save_picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="these images do not have"):
        render_run(World(tmp_path / "other", monkeypatch, "attributes").run, images=tmp_path)


def test_large_and_foreign_files_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(tmp_path / "large.png", (50, 50))
    Image.new("RGB", (8, 8)).save(tmp_path / "other.jpg", "TIFF")
    save_picture(tmp_path / "small.png", (8, 4))
    monkeypatch.setattr(report_sources, "MAX_PIXELS", 1000)
    images, names = read_folder(tmp_path, 4, 10)
    assert names == ("small.png",) and images.shape == (1, 3, 4, 4)


def test_images_are_cropped_centrally_turned_upright_and_put_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 10), "black")
    picture.paste("white", (10, 0, 20, 10))
    picture.save(tmp_path / "a.png")
    turned = Image.new("RGB", (10, 10), "black")
    turned.paste("white", (0, 0, 10, 5))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "b.png", exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.png")
    images, _ = read_folder(tmp_path, 10, 10)
    assert (images[0] == 255).all()
    assert (images[1, :, 0] == 0).all() and (images[1, :, -1] == 255).all()
    assert (images[2] == 255).all()


def test_the_sample_is_fixed_by_its_seed_and_spread_over_classes() -> None:
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    usable = np.arange(1, 100)
    rows = sample_rows(labels, usable, 6, seed=3)
    assert sorted(labels[rows]) == [0, 0, 1, 1, 2, 2] and len(set(rows)) == 6 and 0 not in rows
    assert (rows == sample_rows(labels, usable, 6, seed=3)).all()
    assert (rows != sample_rows(labels, usable, 6, seed=4)).any()
    assert len(sample_rows(labels, usable[:2], 6, seed=3)) == 2
    told = np.array([5, 6, 9, 11])
    some = sample_rows(labels, usable, 6, 3, told)
    assert set(some[: len(told)]) == set(told) and len(set(some)) == 6, "those first, each once"


def test_names_are_shown_kept_and_refused_before_anything_is_made(world: World) -> None:
    with pytest.raises(UserError, match="component 9 cannot be named"):
        render_run(world.run, names=["9=smile"])
    assert not list(world.run.iterdir()) and not world.model.asked
    page = render_run(world.run, num_images=2, num_components=2, directions=["quantiles"], names=["2=raised brows"])
    assert "Component 2: raised brows" in page.read_text() and ">raised brows</a>" in page.read_text()
    again = render_run(world.run, num_images=2, num_components=2, directions=["quantiles"])
    assert "--name &#39;2=raised brows&#39;" in again.read_text()


def test_labels_have_no_components_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "run", monkeypatch, "expression")
    with pytest.raises(UserError, match="only components of features can be named"):
        render_run(world.run, names=["1=smile"])


def test_the_box_is_asked_about_every_frame_that_has_a_slider(world: World) -> None:
    shown: list[int] = []
    answer = world.__call__

    class Asked(World):
        def __call__(self, images: torch.Tensor) -> tuple[Tensor, Tensor]:
            shown.append(len(images))
            return answer(images)

    world.__class__ = Asked
    render_run(world.run, num_images=3, num_components=2, directions=["quantiles", "transfer"])
    assert sum(shown) == 2 * 3 * len(FILM_LEVELS) + 3  # the transfers have none; the sources stand beside the answers


def test_without_its_box_a_run_is_rendered_and_says_what_is_missing(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.box_sha256 = "00" * 32
    page = render_run(world.run, num_images=2, num_components=1, directions=["quantiles"]).read_text()
    assert "without the classifier's answers" in " ".join(capfd.readouterr().err.split())
    assert 'class="answers"' not in page and "carries" in page  # its last layer is in the cache


def test_only_the_wanted_animations_are_made(world: World) -> None:
    render_run(world.run, num_images=2, num_components=1, directions=["quantiles"], video=[])
    assert {path.suffix for path in world.folder.iterdir()} == {".png"}
    with pytest.raises(UserError, match="--video avi"):
        render_run(world.run, video=["avi"])


def test_the_command_takes_names_and_kinds_of_video(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def record(*given: object, **settings: object) -> str:
        asked.append(settings)
        return "page"

    monkeypatch.setattr(render, "render_run", record)
    for options in ([], ["--name", "1=smile", "--name", "2=brows", "--video", "webp"], ["--video", "none"]):
        assert CliRunner().invoke(cli, ["render", "run", *options]).exit_code == 0
    assert [each["video"] for each in asked] == [["gif", "webp"], ["webp"], []]
    assert asked[1]["names"] == ("1=smile", "2=brows")
    assert CliRunner().invoke(cli, ["render", "run", "--video", "avi"]).exit_code == 2
