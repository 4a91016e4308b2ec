"""The terms of the objective, each a free function, as in StarGAN (Choi et al. 2018) and its conditions' losses.

D(x) gives a patch map and an estimate of the condition; every function takes what D said, never D itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.distributed.collectives import gather_with_gradient
from featgan.system.images import single
from featgan.system.statistics import concordance


def wasserstein_discriminator(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """-mean D(x) + mean D(G(x, c)) (Arjovsky et al. 2017)."""
    return logits_fake.mean() - logits_real.mean()


def wasserstein_generator(logits_fake: Tensor) -> Tensor:
    """-mean D(G(x, c))."""
    return -logits_fake.mean()


def logistic_discriminator(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Cross-entropy of real against fake (Goodfellow et al. 2014, eq. 1), in logits."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def logistic_generator(logits_fake: Tensor) -> Tensor:
    """The non-saturating form: -log sigmoid D(G(x, c))."""
    return F.softplus(-logits_fake).mean()


def gradient_norms(gradients: Tensor) -> Tensor:
    """||dD / dx||_2 over all pixels of each image, never in half precision: [N, 3, H, W] => [N]."""
    # The norm's derivative is infinite at 0; the bound is far below any gradient that matters.
    return single(gradients).flatten(1).square().sum(1).clamp_min(1e-24).sqrt()


def between(images_real: Tensor, images_fake: Tensor, alpha: Tensor) -> Tensor:
    """x_hat = a x + (1 - a) G(x, c), where the gradient penalty is taken; `alpha` [N] in [0, 1], one an image."""
    return torch.lerp(images_fake.detach(), images_real, alpha[:, None, None, None])


def gradient_penalty(gradients: Tensor) -> Tensor:
    """mean (||d D(x_hat) / d x_hat||_2 - 1)^2 from D's input gradients at x_hat (Gulrajani et al. 2017, eq. 3)."""
    return (gradient_norms(gradients) - 1).square().mean()


def r1_penalty(gradients: Tensor) -> Tensor:
    """mean ||dD / dx||_2^2 from D's input gradients at real images (Mescheder et al. 2018, eq. 9 without gamma / 2)."""
    return gradient_norms(gradients).square().mean()


def concordance_loss(estimate: Tensor, target: Tensor, reduction: str = "sum") -> Tensor:
    """1 - CCC, summed or averaged over dimensions; statistics are those of the batch of all processes together."""
    pair = gather_with_gradient(torch.stack([estimate, target], 1))
    losses = 1 - concordance(pair[:, 0], pair[:, 1])
    return losses.sum() if reduction == "sum" else losses.mean()


def regression_loss(estimate: Tensor, target: Tensor, regression: str, reduction: str = "sum") -> Tensor:
    """`ccc` or `mse` between [N, C] estimates and targets."""
    if regression == "mse":
        return F.mse_loss(estimate, target)
    return concordance_loss(estimate, target, reduction)


def attribute_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy, summed over attributes, averaged over the batch: [N, A] logits and 0/1 targets."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with one-hot targets (or probabilities) [N, C]."""
    return F.cross_entropy(logits, target)


def cycle_loss(images: Tensor, reconstruction: Tensor) -> Tensor:
    """mean |x - G(G(x, c_target), c_source)|."""
    return (images - reconstruction).abs().mean()


def identity_loss(images: Tensor, same: Tensor, margin: float = 0.0) -> Tensor:
    """mean over images of max(0, |x - G(x, c_source)| - margin), |.| the mean over an image's values."""
    return ((images - same).abs().mean((1, 2, 3)) - margin).clamp_min(0).mean()
