"""Fitting a black box with a 64-d last hidden layer to the labels of a shard set."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featgan.blackbox.fitting.dataset import Examples, load_examples, output_names
from featgan.blackbox.fitting.model_folder import CARD, WEIGHTS, Target, is_damaged, read_card, write_box
from featgan.blackbox.fitting.network import Architecture, FittedNetwork, backbone_weights, build_network
from featgan.blackbox.fitting.scores import compute_scores
from featgan.blackbox.fitting.trainer import Fitting
from featgan.blackbox.preprocessing import IMAGENET, Preprocessing
from featgan.blackbox.weights import choose_device, load_weights, read_weights
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.system.files import sha256_of
from featgan.system.progress import console


class FitSettings(BaseModel):
    """Everything that decides the weights; equal settings give an equal box."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    network: str
    width: Annotated[float, Field(ge=0.125, le=8)]
    weights: str | None
    """sha256 of the file that the backbone starts from."""
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=2, le=65_536)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    image_size: Annotated[int, Field(ge=16, le=1024)]
    shards: str
    """Fingerprint of the shards."""


def fit_blackbox(
    shards: Path | str,
    target: str,
    out: Path | str,
    network: str = "vgg",
    weights: Path | str | None = None,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    seed: int = 0,
    image_size: int | None = None,
    width: float = 1.0,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Fit a box to the training split, write it to `out` and return its scores on the validation split.

    `target` is expression, valence_arousal, attributes or factors; `network` is `vgg` or `torchvision:NAME`, `weights`
    a file that its backbone starts from; `image_size` is that of the shards by default; `width` widens `vgg`. A box
    that is there already with the same settings is left as it is, unless its weights are damaged. UserError: a setting
    out of range, shards without the target, or an `out` that holds something else.
    """
    opened = ShardSet.open(shards)
    opened.verify()
    names = output_names(opened, target)
    start = Path(weights) if weights else None
    settings = check_settings(
        target=target,
        network=network,
        width=width,
        weights=hash_weights(start),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        image_size=image_size or opened.image_size,
        shards=opened.fingerprint,
    )
    done = find_done(Path(out), settings)
    if done is not None:
        console.print(f"{out}: fitted already with these settings")
        return done
    return fit_and_write(opened, names, settings, start, Path(out), choose_device(device))


def hash_weights(path: Path | None) -> str | None:
    if path is None:
        return None
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    return sha256_of(path)


def check_settings(**values: Any) -> FitSettings:
    """UserError names the first setting that is out of range."""
    try:
        return FitSettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise UserError(f"{name.replace('_', ' ')} {values[name]}: {first['msg'].lower()}") from error


def find_done(out: Path, settings: FitSettings) -> dict[str, Any] | None:
    """The scores of the box in `out` when it has these settings, None when nothing or a damaged one is there.

    UserError when `out` is anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / CARD).is_file():
        raise UserError(f"{out}: is there already and is no fitted box; choose another --out")
    card = read_card(out)
    for name, value in settings.model_dump().items():
        found = card.settings.get(name)
        if found != value:
            what = "on other shards" if name == "shards" else f"with {name} {found}, not {value}"
            raise UserError(f"{out}: was fitted {what}; remove it or choose another --out")
    if is_damaged(out, card):
        console.print(f"{out / WEIGHTS}: missing or not as it was written; fitting it again", markup=False)
        return None
    return card.scores


def fit_and_write(
    shards: ShardSet, names: tuple[str, ...], settings: FitSettings, start: Path | None, out: Path, device: torch.device
) -> dict[str, Any]:
    """Fit, score on images not fitted to (on the training images where there is no validation split), and write."""
    architecture = Architecture(network=settings.network, width=settings.width, output_dim=len(names))
    network = start_network(architecture, settings.seed, start)
    # Weights from elsewhere expect the images that they were trained on.
    base = IMAGENET if start else Preprocessing()
    preprocessing = base.model_copy(update={"image_size": settings.image_size})
    train, held_out = load_splits(shards, settings)
    fitting = Fitting(network, preprocessing, settings.target, train, settings.seed, device)
    fitting.run(settings.epochs, settings.batch_size, settings.learning_rate)
    outputs = fitting.predict(held_out)
    measured = compute_scores(outputs, held_out.targets, settings.target, names)
    scores = {"split": held_out.split.name, **measured}
    card = {
        "target": settings.target,
        "class_names": names,
        "architecture": architecture,
        "preprocessing": preprocessing,
        "settings": settings.model_dump(),
        "scores": scores,
    }
    write_box(out, network, card)
    return scores


def start_network(architecture: Architecture, seed: int, start: Path | None) -> FittedNetwork:
    """Drawn from the seed, the caller's random state left alone; the backbone is that of `start` where it is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(architecture)
    if start is not None:
        load_weights(network.backbone, backbone_weights(network.backbone, read_weights(start)), start)
    return network


def load_splits(shards: ShardSet, settings: FitSettings) -> tuple[Examples, Examples]:
    """What is fitted to, and what is scored."""
    train = load_examples(shards, "train", settings.target, settings.image_size)
    if "validation" not in shards.split_names:
        console.print(f"{shards.path}: no validation split; the scores are those of the training images")
        return train, train
    return train, load_examples(shards, "validation", settings.target, settings.image_size)
