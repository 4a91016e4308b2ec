"""The exported generator: what evaluation, rendering and other programs need to edit an image."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from featgan.data.conditions import phrase, phrase_dim
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.features.space import FeatureSpace
from featgan.networks.generator import Generator
from featgan.run.checkpoint import find_checkpoint, read_tensors
from featgan.run.model_card import ModelCard, read_card
from featgan.system.memory import keep_freed_memory

BATCH = 64


@dataclass(frozen=True)
class Model:
    """G with its condition's encoding, on one device, without gradients."""

    card: ModelCard
    generator: Generator
    space: FeatureSpace | None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def step(self) -> int:
        return self.card.step

    @property
    def image_size(self) -> int:
        return self.card.image_size

    @property
    def condition_dim(self) -> int:
        return self.card.condition_dim

    @property
    def condition_kind(self) -> str:
        return self.card.condition_kind

    @property
    def encoding(self) -> str:
        return self.card.encoding

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.card.class_names

    @property
    def attribute_names(self) -> tuple[str, ...]:
        return self.card.attribute_names

    @property
    def blackbox(self) -> dict[str, str] | None:
        return self.card.blackbox

    @property
    def dataset(self) -> dict[str, str | None]:
        return self.card.dataset

    def encode(self, features: Tensor) -> Tensor:
        """Features of the black box [..., F] => the condition [..., C]."""
        assert self.space is not None
        return self.space.encode(features, self.encoding)

    def ask(self, wanted: Tensor, own: Tensor | None) -> Tensor:
        """What G takes, from the condition that is wanted and the images' own, both [..., C]."""
        return phrase(self.card.generator.request, wanted, own)

    @torch.inference_mode()
    def edit(self, images: Tensor, condition: Tensor) -> Tensor:
        """Images [N, 3, S, S] in [-1, 1] and what `ask` gives for each => edited images, clamped to [-1, 1]."""
        parts = [
            self.generator(part.to(self.device), wanted.to(self.device)).clamp(-1, 1).cpu()
            for part, wanted in zip(images.split(BATCH), condition.split(BATCH), strict=True)
        ]
        return torch.cat(parts)


def open_shards(model: Model) -> ShardSet:
    """The shards that the model was trained on; UserError when others lie in their place, or one was changed."""
    shards = ShardSet.open(str(model.dataset["shards"]))
    known = model.dataset.get("fingerprint")
    if shards.image_size != model.image_size or (known and known != shards.fingerprint):
        raise UserError(
            f"{shards.path}: holds other shards than the run was trained on ({shards.image_size} px now, "
            f"{model.image_size} px then); pack those again, or train anew"
        )
    shards.verify()
    return shards


def open_cache(model: Model, shards: ShardSet) -> FeatureCache:
    """The feature cache that the model was trained on; UserError when another box or layer lies under its name."""
    cache = FeatureCache.open(shards, str(model.dataset["features"]))
    known = model.blackbox or {}
    if any(cache.blackbox[key] != known.get(key) for key in ("sha256", "layer")):
        raise UserError(
            f"{cache.path}: holds features of another box or layer than the run was trained on; "
            "extract those again, or train anew"
        )
    cache.verify()
    return cache


def load_model(run: Path, step: int | None = None, device: torch.device | str = "cpu") -> Model:
    """The generator of a run's checkpoint (the newest by default); UserError when there is none or it is damaged."""
    keep_freed_memory()
    folder = find_checkpoint(run, step)
    card = read_card(folder / "model.json")
    width = phrase_dim(card.generator.request, card.condition_dim)
    generator = Generator(card.image_size, width, **card.generator.architecture)
    try:
        generator.load_state_dict(read_tensors(folder / "average.safetensors"))
    except RuntimeError:
        raise UserError(f"{folder}: average.safetensors does not fit the architecture in model.json") from None
    generator.eval().requires_grad_(False).to(device)
    path = folder / "space.safetensors"
    space = FeatureSpace(**read_tensors(path)) if path.exists() else None
    return Model(card, generator, space, torch.device(device))
