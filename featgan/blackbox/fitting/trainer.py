"""The loop that fits a box: class-balanced losses, small changes of the images, one rise and fall of the rate."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.fitting.augmentation import augment
from featgan.blackbox.fitting.dataset import Examples
from featgan.blackbox.fitting.network import FittedNetwork
from featgan.blackbox.preprocessing import Preprocessing
from featgan.system.images import to_float
from featgan.system.progress import Meter, meter
from featgan.system.statistics import concordance

WARM_UP = 0.15
"""Share of the steps in which the learning rate rises."""

WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
LARGEST_CLASS_WEIGHT = 6.0
"""Of a rare class over the most frequent one, so that five images cannot take over."""

EVALUATION_BATCH = 128
NOTE_EVERY = 10
"""Steps between two looks at the loss."""


class Fitting:
    """One network on its way from fresh weights to a box."""

    def __init__(
        self,
        network: FittedNetwork,
        preprocessing: Preprocessing,
        target: str,
        train: Examples,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.preprocessing = preprocessing
        self.target = target
        self.train = train
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)
        num_outputs = network.output.out_features
        self.class_weights = torch.ones(num_outputs)
        self.spread, self.offset = torch.ones(num_outputs), torch.zeros(num_outputs)
        if target == "expression":
            self.class_weights = balance_classes(train.targets, num_outputs)
        elif target == "attributes":
            self.class_weights = balance_attributes(train.targets)
        else:
            self.spread, self.offset = torch.std_mean(train.targets, 0)
            self.spread.clamp_min_(1e-6)

    def run(self, epochs: int, batch_size: int, learning_rate: float) -> None:
        """Fit the network; its last layer then gives the target in its own units."""
        optimizer = torch.optim.AdamW(self.network.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
        # As many parts as there are whole batches: none is so small that its statistics mean nothing.
        num_parts = max(1, len(self.train) // batch_size)
        num_steps = epochs * num_parts
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step / num_steps))
        self.network.train()
        with meter("fitting the box", epochs * len(self.train), "images") as bar:
            for _ in range(epochs):
                order = torch.randperm(len(self.train), generator=self.generator)
                self.run_epoch(order.tensor_split(num_parts), optimizer, scheduler, bar)
        self.restore_units()

    def run_epoch(
        self,
        parts: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        bar: Meter,
    ) -> None:
        for number, (images, targets) in enumerate(self.train.batches(parts)):
            loss = self.compute_loss(images, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            bar.advance(len(images))
            if number % NOTE_EVERY == 0:
                bar.note(f"loss {float(loss.detach()):.3f}")

    def compute_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Of one batch of uint8 images; numbers are compared in standard deviations of the training targets."""
        inputs = to_float(images.to(self.device))
        if self.target != "factors":
            # Pose and light are factors: a mirrored, moved or darkened face would have other ones.
            inputs = augment(inputs, self.generator)
        inputs = self.preprocessing(inputs).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_in_bfloat16(self.device)):
            outputs = self.network(inputs).float()
        if self.target == "expression":
            weights = self.class_weights.to(self.device)
            return F.cross_entropy(outputs, targets.to(self.device), weights, label_smoothing=LABEL_SMOOTHING)
        if self.target == "attributes":
            weights = self.class_weights.to(self.device)
            return F.binary_cross_entropy_with_logits(outputs, targets.to(self.device), pos_weight=weights)
        standardized = ((targets - self.offset) / self.spread).to(self.device)
        loss = F.mse_loss(outputs, standardized)
        return loss + (1 - concordance(outputs, standardized)).mean() if self.target == "valence_arousal" else loss

    @torch.no_grad()
    def restore_units(self) -> None:
        output, spread, offset = self.network.output, self.spread.to(self.device), self.offset.to(self.device)
        output.weight.mul_(spread[:, None])
        output.bias.mul_(spread).add_(offset)

    @torch.no_grad()
    def predict(self, examples: Examples) -> Tensor:
        """Outputs [N, O] on the CPU, as the box will give them."""
        self.network.eval()
        outputs = []
        for images, _ in examples.batches(
            torch.arange(len(examples)).tensor_split(-(-len(examples) // EVALUATION_BATCH))
        ):
            inputs = self.preprocessing(to_float(images.to(self.device)))
            outputs.append(self.network(inputs.contiguous(memory_format=torch.channels_last)).cpu())
        return torch.cat(outputs)


def balance_classes(codes: Tensor, num_classes: int) -> Tensor:
    """Loss weights [num_classes]: the inverse square root of the frequency, bounded; 0 for a class without images.

    Scaled so that the weights of all images sum to their number.
    """
    counts = torch.bincount(codes, minlength=num_classes).float()
    weights = (counts.max() / counts.clamp_min(1)).sqrt().clamp_max(LARGEST_CLASS_WEIGHT) * (counts > 0)
    return weights * (counts.sum() / (weights * counts).sum())


def balance_attributes(present: Tensor) -> Tensor:
    """Loss weight of each attribute's presence over its absence, from 0 and 1 [N, A], by the same rule."""
    share = present.mean(0).clamp(1 / len(present), 1 - 1 / len(present))
    return ((1 - share) / share).sqrt().clamp(1 / LARGEST_CLASS_WEIGHT, LARGEST_CLASS_WEIGHT)


def schedule(progress: float) -> float:
    """Factor on the learning rate at 0 <= progress <= 1: a linear rise, then half a cosine down to 0."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32; elsewhere it would only be emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found: Callable[[str], object] = torch.cpu.get_capabilities().get
    return bool(found("avx512_bf16") or found("amx_bf16"))
