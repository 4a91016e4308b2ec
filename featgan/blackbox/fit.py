"""Training a black box with a 64-d last hidden layer on the labels of a shard set."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.augment import augment
from featgan.blackbox.box_folder import CARD, Target, read_card, write_box
from featgan.blackbox.examples import Examples, load_examples, output_names
from featgan.blackbox.network import Architecture, FittedNetwork, build_network
from featgan.blackbox.preprocessing import IMAGENET, Preprocessing
from featgan.blackbox.scores import compute_scores, headline
from featgan.blackbox.weights import load_weights, read_weights
from featgan.data.files import sha256_of
from featgan.data.shards import ShardSet
from featgan.errors import UserError
from featgan.images import to_float
from featgan.losses import concordance
from featgan.progress import Meter, console, meter

WARM_UP = 0.15
"""Share of the steps in which the learning rate rises."""

WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
LARGEST_CLASS_WEIGHT = 6.0
"""Of a rare class over the most frequent one, so that five images cannot take over."""

EVALUATION_BATCH = 128

Loss = Callable[[Tensor, Tensor], Tensor]


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
    target: Literal["expression", "valence_arousal", "factors"] | str,
    out: Path | str,
    network: str = "vgg",
    weights: Path | str | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    image_size: int | None = None,
    width: float = 1.0,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Fit a box on the training split, write it to `out` and return its scores on the validation split.

    `network` is `vgg` or `torchvision:NAME`; `weights` is a file that its backbone starts from; `image_size` is that of
    the shards by default; `width` widens `vgg`. A box that is there already with the same settings is left as it is.
    UserError: a setting out of range, shards without the target, or an `out` that holds something else.
    """
    opened = ShardSet.open(shards)
    names = output_names(opened, target)
    settings = check_settings(
        target=target,
        network=network,
        width=width,
        weights=sha256_of(existing(Path(weights))) if weights else None,
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
    fitting = Fitting(opened, settings, names, Path(weights) if weights else None, torch.device(device))
    fitting.run()
    scores = fitting.score()
    write_box(Path(out), fitting.network, fitting.card(scores))
    console.print(f"{out}: {headline(scores)}")
    return scores


def existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    return path


def check_settings(**values: Any) -> FitSettings:
    """UserError names the first setting that is out of range."""
    try:
        return FitSettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise UserError(f"{name.replace('_', ' ')} {values[name]}: {first['msg'].lower()}") from error


def find_done(out: Path, settings: FitSettings) -> dict[str, Any] | None:
    """Scores of the box in `out` when it has these settings; None when nothing is there; UserError for anything else."""
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
    return card.scores


class Fitting:
    """One fit at work."""

    def __init__(
        self,
        shards: ShardSet,
        settings: FitSettings,
        names: tuple[str, ...],
        weights: Path | None,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.names = names
        self.device = device
        self.train = load_examples(shards, "train", settings.target, settings.image_size)
        self.held_out = "validation" if "validation" in shards.split_names else "train"
        self.validation = (
            load_examples(shards, "validation", settings.target, settings.image_size)
            if self.held_out == "validation"
            else self.train
        )
        self.architecture = Architecture(network=settings.network, width=settings.width, output_dim=len(names))
        base = IMAGENET if weights else Preprocessing()
        self.preprocessing = base.model_copy(update={"image_size": settings.image_size})
        # The network is drawn from the seed without touching the caller's random state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = self.build(weights).to(device, memory_format=torch.channels_last)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.loss, self.offset, self.spread = self.build_loss()
        steps_per_epoch = max(1, len(self.train) // settings.batch_size)
        self.num_steps = settings.epochs * steps_per_epoch
        self.steps_per_epoch = steps_per_epoch

    def build(self, weights: Path | None) -> FittedNetwork:
        network = build_network(self.architecture)
        if weights is not None:
            load_weights(network.backbone, read_weights(weights), weights)
        return network

    def build_loss(self) -> tuple[Loss, Tensor, Tensor]:
        """The loss of outputs in standard units, and what those units are: offset and spread of each output."""
        zero, one = torch.zeros(len(self.names)), torch.ones(len(self.names))
        if self.settings.target == "expression":
            weight = class_weights(self.train.targets, len(self.names)).to(self.device)
            return (
                (lambda logits, codes: F.cross_entropy(logits, codes, weight, label_smoothing=LABEL_SMOOTHING)),
                zero,
                one,
            )
        if self.settings.target == "valence_arousal":
            return affect_loss, zero, one
        spread, offset = torch.std_mean(self.train.targets, 0)
        return F.mse_loss, offset, spread.clamp_min(1e-6)

    def run(self) -> None:
        """All epochs."""
        optimizer = torch.optim.AdamW(self.network.parameters(), self.settings.learning_rate, weight_decay=WEIGHT_DECAY)
        self.network.train()
        images = self.settings.epochs * len(self.train)
        with meter("fitting the box", images, "images") as bar:
            for epoch in range(self.settings.epochs):
                self.run_epoch(epoch, optimizer, bar)
        self.unstandardize()

    def run_epoch(self, epoch: int, optimizer: torch.optim.Optimizer, bar: Meter) -> None:
        order = torch.randperm(len(self.train), generator=self.generator)
        # As many parts as whole batches: none is so small that its batch statistics mean nothing.
        parts = order.tensor_split(self.steps_per_epoch)
        for number, (images, targets) in enumerate(self.train.batches(parts)):
            rate = self.settings.learning_rate * schedule((epoch * self.steps_per_epoch + number) / self.num_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = self.compute_loss(images, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.advance(len(images))
            if number % 10 == 0:
                bar.note(f"loss {float(loss.detach()):.3f}")

    def compute_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Of one batch of uint8 images."""
        inputs = to_float(images.to(self.device))
        if self.settings.target != "factors":  # pose and light are factors: changed images would have other ones
            inputs = augment(inputs, self.generator)
        else:
            targets = (targets - self.offset) / self.spread
        inputs = self.preprocessing(inputs).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_in_bfloat16(self.device)):
            outputs = self.network(inputs)
        return self.loss(outputs.float(), targets.to(self.device))

    @torch.no_grad()
    def unstandardize(self) -> None:
        """Let the last layer give the target in its own units."""
        output = self.network.output
        offset, spread = self.offset.to(self.device), self.spread.to(self.device)
        output.weight.mul_(spread[:, None])
        output.bias.mul_(spread).add_(offset)

    @torch.no_grad()
    def predict(self, examples: Examples) -> Tensor:
        """Outputs [N, O] on the CPU, as the box gives them."""
        self.network.eval()
        outputs = []
        parts = torch.arange(len(examples)).split(EVALUATION_BATCH)
        for images, _ in examples.batches(parts):
            inputs = self.preprocessing(to_float(images.to(self.device)))
            outputs.append(self.network(inputs.contiguous(memory_format=torch.channels_last)).cpu())
        return torch.cat(outputs)

    def score(self) -> dict[str, Any]:
        """On the validation split, or on the training split where there is no other."""
        outputs = self.predict(self.validation)
        scores = compute_scores(outputs, self.validation.targets, self.settings.target, self.names)
        return {"split": self.held_out, **scores}

    def card(self, scores: dict[str, Any]) -> dict[str, Any]:
        """The fields of box.json."""
        return {
            "target": self.settings.target,
            "class_names": self.names,
            "architecture": self.architecture,
            "preprocessing": self.preprocessing,
            "settings": self.settings.model_dump(),
            "scores": scores,
        }


def class_weights(codes: Tensor, num_classes: int) -> Tensor:
    """Loss weights [num_classes]: the inverse square root of the frequency, bounded; 0 for a class without images.

    Scaled so that the weights of all images sum to their number.
    """
    counts = torch.bincount(codes, minlength=num_classes).float()
    weights = (counts.max() / counts.clamp_min(1)).sqrt().clamp_max(LARGEST_CLASS_WEIGHT) * (counts > 0)
    return weights * (counts.sum() / (weights * counts).sum())


def affect_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 - CCC and the squared error of valence and arousal [N, 2], averaged."""
    return (1 - concordance(outputs, targets)).mean() + F.mse_loss(outputs, targets)


def schedule(progress: float) -> float:
    """Factor on the learning rate at 0 <= progress < 1: a linear rise, then half a cosine down to 0."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32; elsewhere it would only be emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
