"""The loss terms, each a free function, as in StarGAN (Choi et al. 2018), and the losses of the condition.

D(x) outputs a patch map of logits and an estimate of the condition. The functions take D's outputs, never D itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from featgan.distributed.collectives import gather_with_gradient
from featgan.system.images import to_fp32
from featgan.system.statistics import concordance_correlation


def wgan_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """-mean D(x) + mean D(G(x, c)), the Wasserstein loss of D (Arjovsky et al. 2017)."""
    return logits_fake.mean() - logits_real.mean()


def wgan_g_loss(logits_fake: Tensor) -> Tensor:
    """-mean D(G(x, c)), the Wasserstein loss of G (Arjovsky et al. 2017)."""
    return -logits_fake.mean()


def nonsaturating_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Binary cross-entropy of real against fake images, from logits (Goodfellow et al. 2014, eq. 1)."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def nonsaturating_g_loss(logits_fake: Tensor) -> Tensor:
    """-mean log sigmoid D(G(x, c)), the non-saturating loss of G (Goodfellow et al. 2014)."""
    return F.softplus(-logits_fake).mean()


def gradient_norms(gradients: Tensor) -> Tensor:
    """||dD / dx||_2 over all pixels of each image, computed in at least fp32: [N, 3, H, W] => [N]."""
    # The derivative of the norm is infinite at 0. The clamp is far below any relevant gradient.
    return to_fp32(gradients).flatten(1).square().sum(1).clamp_min(1e-24).sqrt()


def interpolate_for_gp(x_real: Tensor, x_fake: Tensor, alpha: Tensor) -> Tensor:
    """x_hat = a x + (1 - a) G(x, c), the input of the gradient penalty; `alpha` [N] in [0, 1], one value per image."""
    return torch.lerp(x_fake.detach(), x_real, alpha[:, None, None, None])


def gradient_penalty(gradients: Tensor) -> Tensor:
    """mean (||d D(x_hat) / d x_hat||_2 - 1)^2 from D's input gradients at x_hat (Gulrajani et al. 2017, eq. 3)."""
    return (gradient_norms(gradients) - 1).square().mean()


def r1_penalty(gradients: Tensor) -> Tensor:
    """mean ||dD / dx||_2^2 from D's input gradients at real images (Mescheder et al. 2018, eq. 9 without gamma / 2)."""
    return gradient_norms(gradients).square().mean()


def ccc_loss(estimate: Tensor, target: Tensor, reduction: str = "sum") -> Tensor:
    """1 - CCC, summed or averaged over the dimensions of two [N, C] tensors.

    The statistics are those of the global batch, over all processes.
    """
    gathered = gather_with_gradient(torch.stack([estimate, target], 1))
    losses = 1 - concordance_correlation(gathered[:, 0], gathered[:, 1])
    return losses.sum() if reduction == "sum" else losses.mean()


def regression_loss(estimate: Tensor, target: Tensor, regression: str, reduction: str = "sum") -> Tensor:
    """The `ccc` or `mse` loss between [N, C] estimates and targets."""
    if regression == "mse":
        return F.mse_loss(estimate, target)
    return ccc_loss(estimate, target, reduction)


def attribute_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of [N, A] logits and 0/1 targets, summed over attributes, averaged over the batch."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of [N, C] logits and [N, C] one-hot targets or probabilities, averaged over the batch."""
    return F.cross_entropy(logits, target)


def cycle_loss(x_real: Tensor, x_cycled: Tensor) -> Tensor:
    """mean |x - G(G(x, c_target), c_source)|, the cycle-consistency loss (Choi et al. 2018, eq. 4)."""
    return (x_real - x_cycled).abs().mean()


def identity_loss(x_real: Tensor, x_identity: Tensor, margin: float = 0.0) -> Tensor:
    """mean over images of max(0, |x - G(x, c_source)| - margin).

    |.| is the mean absolute value over one image.
    """
    return ((x_real - x_identity).abs().mean((1, 2, 3)) - margin).clamp_min(0).mean()
