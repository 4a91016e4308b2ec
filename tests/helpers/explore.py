"""Helpers for the tests of the interactive page: runs, and a generator that reaches every target exactly."""

import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from featgan.data.packing.pack import pack_shards
from featgan.explore import loaded_run
from featgan.explore.edit_request import EditRequest
from featgan.explore.session import ExploreSession
from featgan.inference import training_data
from featgan.inference.model import EditingModel
from featgan.training.train import train
from tests.conftest import World

CLIENT_ID = "a1b2c3"


def train_run(world: World, run_dir: Path, **sections: Mapping[str, object]) -> Path:
    """Train a run for two steps; the tests do not depend on its weights."""
    return train(world.make_config(run_dir, training={"steps": 2, "checkpoint_every": 2, "num_workers": 0}, **sections))


def pack_attributes(world: World, folder: Path) -> Path:
    """Pack the world's faces with three attributes, two of which are hair colors."""
    folder.mkdir()
    images = sorted((world.source / "train_set" / "images").iterdir())
    rows = [f"{image.name},{index % 2},{index // 2 % 2},{index // 4 % 2}" for index, image in enumerate(images)]
    (folder / "labels.csv").write_text("\n".join(["file,Blond_Hair,Black_Hair,Smiling", *rows]) + "\n")
    for image in images:
        shutil.copy(image, folder / image.name)
    pack_shards("csv", folder, folder / "shards", image_size=16, workers=1)
    return folder / "shards"


@contextmanager
def perfect_generator(world: World) -> Iterator[pytest.MonkeyPatch]:
    """Replace G: it changes the pixels so that the linear classifier extracts the target; labels set the brightness."""
    inverse = torch.linalg.pinv(world.classifier.weight)

    def edit_images(self: EditingModel, images: Tensor, condition: Tensor) -> Tensor:
        if self.metadata.condition_kind != "features":
            return images + 0.2 * condition[:, :2].mean(1)[:, None, None, None]
        assert self.space is not None
        target, difference = (
            condition.split(self.metadata.condition_dim, 1) if conditions_on_difference(self) else (condition, None)
        )
        target_features = self.space.decode(target, self.metadata.encoding)
        # With the difference as input, the source features are known without the classifier.
        source_features = (
            world.classifier(images)[0]
            if difference is None
            else self.space.decode(target - difference, self.metadata.encoding)
        )
        pixel_change = (target_features - source_features) @ inverse.T
        return images + torch.nn.functional.interpolate(pixel_change.view(-1, 3, 8, 8), size=images.shape[2:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EditingModel, "edit_images", edit_images)
        for module in (training_data, loaded_run):
            patch.setattr(module, "load_blackbox", lambda spec, layer=None, device=None, trusted=None: world.classifier)
        yield patch


def conditions_on_difference(model: EditingModel) -> bool:
    """Return whether G also receives the difference between target and source."""
    return model.metadata.generator.condition_input == "target_and_difference"


def first_image_id(session: ExploreSession) -> str:
    """Return the id of the first validation image."""
    return session.image_store.sample(1)[0].id


def make_edit_request(session: ExploreSession, **fields: object) -> EditRequest:
    """Return an edit request, by default for the first validation image."""
    image_id = fields.pop("image", None) or first_image_id(session)
    return EditRequest.model_validate({"client_id": CLIENT_ID, "image": image_id, **fields})


def encode_image(image_format: str, size: tuple[int, int] = (40, 20), color: str = "red", **options: object) -> bytes:
    """Return the content of an image file."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, image_format, **options)
    return buffer.getvalue()
