"""The training loop of a classifier: class-balanced losses, augmentation, and a warm-up and cosine schedule."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.blackbox.fitting.augmentation import augment_images
from featgan.blackbox.fitting.dataset import ClassifierDataset
from featgan.blackbox.fitting.network import FittedNetwork
from featgan.blackbox.preprocessing import Preprocessing
from featgan.system.device import has_fast_bf16
from featgan.system.images import to_float
from featgan.system.memory import choose_batch_size
from featgan.system.progress import ProgressBar, progress_bar
from featgan.system.statistics import concordance_correlation

WARMUP_SHARE = 0.15
"""Share of the steps in which the learning rate increases."""

WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
MAX_CLASS_WEIGHT = 6.0
"""Maximum loss weight of a rare class relative to the most frequent one, so that few images cannot dominate."""

EVALUATION_BATCH_SIZE = 128
LOG_EVERY = 10
"""Number of steps between two updates of the displayed loss."""


class ClassifierTrainer:
    """Trains one network for a task."""

    def __init__(
        self,
        network: FittedNetwork,
        preprocessing: Preprocessing,
        task: str,
        train_set: ClassifierDataset,
        seed: int,
        device: torch.device,
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.preprocessing = preprocessing
        self.task = task
        self.train_set = train_set
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)
        num_outputs = network.output.out_features
        self.class_weights = torch.ones(num_outputs)
        self.target_std, self.target_mean = torch.ones(num_outputs), torch.zeros(num_outputs)
        if task == "expression":
            self.class_weights = balance_classes(train_set.targets, num_outputs)
        elif task == "attributes":
            self.class_weights = balance_attributes(train_set.targets)
        else:
            self.target_std, self.target_mean = torch.std_mean(train_set.targets, 0)
            self.target_std.clamp_min_(1e-6)

    def fit(self, epochs: int, batch_size: int, learning_rate: float) -> None:
        """Train the network; its outputs are then in the units of the labels."""
        optimizer = torch.optim.AdamW(self.network.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
        # The images are divided evenly, so that no batch is too small for batch norm.
        num_batches = max(1, len(self.train_set) // batch_size)
        num_steps = epochs * num_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step / num_steps))
        self.network.train()
        with progress_bar("training classifier", epochs * len(self.train_set), "images") as bar:
            for _ in range(epochs):
                order = torch.randperm(len(self.train_set), generator=self.generator)
                self.train_epoch(order.tensor_split(num_batches), optimizer, scheduler, bar)
        self.restore_target_units()

    def train_epoch(
        self,
        batch_indices: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        bar: ProgressBar,
    ) -> None:
        """Train on the given batches of indices."""
        for batch_index, (images, targets) in enumerate(self.train_set.iterate_batches(batch_indices)):
            loss = self.compute_loss(images, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            bar.advance(len(images))
            if batch_index % LOG_EVERY == 0:
                bar.set_note(f"loss {float(loss.detach()):.3f}")

    def compute_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of a batch of uint8 images; regression targets are standardized."""
        inputs = to_float(images.to(self.device))
        if self.task != "factors":
            # Pose and light are factors, so augmentation would change the labels.
            inputs = augment_images(inputs, self.generator)
        inputs = self.preprocessing(inputs).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=has_fast_bf16(self.device)):
            outputs = self.network(inputs).float()
        if self.task == "expression":
            weights = self.class_weights.to(self.device)
            return F.cross_entropy(outputs, targets.to(self.device), weights, label_smoothing=LABEL_SMOOTHING)
        if self.task == "attributes":
            weights = self.class_weights.to(self.device)
            return F.binary_cross_entropy_with_logits(outputs, targets.to(self.device), pos_weight=weights)
        standardized = ((targets - self.target_mean) / self.target_std).to(self.device)
        loss = F.mse_loss(outputs, standardized)
        if self.task == "valence_arousal":
            return loss + (1 - concordance_correlation(outputs, standardized)).mean()
        return loss

    @torch.no_grad()
    def restore_target_units(self) -> None:
        """Fold the standardization of the targets into the output layer."""
        output, std, mean = self.network.output, self.target_std.to(self.device), self.target_mean.to(self.device)
        output.weight.mul_(std[:, None])
        output.bias.mul_(std).add_(mean)

    @torch.no_grad()
    def predict(self, dataset: ClassifierDataset) -> Tensor:
        """Return the outputs [N, O] on the CPU, in the units of the labels."""
        self.network.eval()
        outputs = []
        image_size = self.preprocessing.image_size or dataset.image_size
        batch_size = choose_batch_size(image_size, EVALUATION_BATCH_SIZE)
        for images, _ in dataset.iterate_batches(
            torch.arange(len(dataset)).tensor_split(-(-len(dataset) // batch_size))
        ):
            inputs = self.preprocessing(to_float(images.to(self.device)))
            outputs.append(self.network(inputs.contiguous(memory_format=torch.channels_last)).cpu())
        return torch.cat(outputs)


def balance_classes(codes: Tensor, num_classes: int) -> Tensor:
    """Compute loss weights [num_classes]: the bounded inverse square root of the frequency; 0 without images.

    The weights are scaled so that their sum over all images is the number of images.
    """
    counts = torch.bincount(codes, minlength=num_classes).float()
    weights = (counts.max() / counts.clamp_min(1)).sqrt().clamp_max(MAX_CLASS_WEIGHT) * (counts > 0)
    return weights * (counts.sum() / (weights * counts).sum())


def balance_attributes(present: Tensor) -> Tensor:
    """Compute the loss weight of each attribute's presence relative to its absence: values 0 or 1 [N, A] => [A]."""
    share = present.mean(0).clamp(1 / len(present), 1 - 1 / len(present))
    return ((1 - share) / share).sqrt().clamp(1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT)


def lr_factor(progress: float) -> float:
    """Return the learning rate factor for 0 <= progress <= 1: a linear warm-up, then a cosine decay to 0."""
    if progress < WARMUP_SHARE:
        return max(progress / WARMUP_SHARE, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))
