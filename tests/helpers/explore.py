"""Shared by the tests of the live page: a run whose generator does exactly what it is asked, and its box."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from featgan.data.packing.pack import pack
from featgan.explore import loaded_run
from featgan.explore.edit_request import Ask
from featgan.explore.session import Session
from featgan.inference import training_data
from featgan.inference.model import Model
from featgan.training.train import train
from tests.conftest import World

TAB = "a1b2c3"


def train_run(world: World, run: Path, **sections: dict[str, object]) -> Path:
    """A training of two steps: what the networks are does not matter here."""
    return train(world.config(run, training={"steps": 2, "save_every": 2, "num_workers": 0}, **sections))


def pack_attributes(world: World, folder: Path) -> Path:
    """The world's faces with three attributes, of which two are hair colours."""
    folder.mkdir()
    images = sorted((world.source / "train_set" / "images").iterdir())
    rows = [f"{image.name},{index % 2},{index // 2 % 2},{index // 4 % 2}" for index, image in enumerate(images)]
    (folder / "labels.csv").write_text("\n".join(["file,Blond_Hair,Black_Hair,Smiling", *rows]) + "\n")
    for image in images:
        shutil.copy(image, folder / image.name)
    pack("csv", folder, folder / "shards", image_size=16, workers=1)
    return folder / "shards"


@contextmanager
def obeying(world: World) -> Iterator[pytest.MonkeyPatch]:
    """G paints what the box must see, which is linear in the image; with labels it shows them as grey levels."""
    inverse = torch.linalg.pinv(world.box.weight)

    def edit(self: Model, images: Tensor, condition: Tensor) -> Tensor:
        if self.condition_kind != "features":
            return images + 0.2 * condition[:, :2].mean(1)[:, None, None, None]
        assert self.space is not None
        target, change = condition.split(self.condition_dim, 1) if told_changes(self) else (condition, None)
        goal = self.space.decode(target, self.encoding)
        # Who is told the change need not look at the picture.
        start = world.box(images)[0] if change is None else self.space.decode(target - change, self.encoding)
        wanted = (goal - start) @ inverse.T
        return images + torch.nn.functional.interpolate(wanted.view(-1, 3, 8, 8), size=images.shape[2:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "edit", edit)
        for module in (training_data, loaded_run):
            patch.setattr(module, "load_blackbox", lambda spec, layer=None, device=None: world.box)
        yield patch


def told_changes(model: Model) -> bool:
    return model.card.generator.request == "change"


def first_picture(session: Session) -> str:
    return session.pictures.sample(1)[0].id


def wish(session: Session, **parts: object) -> Ask:
    """An edit, of the first validation image where no other is named."""
    picture = parts.pop("picture", None) or first_picture(session)
    return Ask.model_validate({"session": TAB, "picture": picture, **parts})


def encode(kind: str, size: tuple[int, int] = (40, 20), colour: str = "red", **options: object) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, **options)
    return buffer.getvalue()
