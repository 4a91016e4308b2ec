"""Every term of the objective against values worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from featgan.networks.discriminator import Discriminator
from featgan.training import losses


def test_wasserstein_terms_are_differences_of_means() -> None:
    real, fake = torch.tensor([[1.0, 3.0]]), torch.tensor([[-2.0, 6.0]])
    assert losses.wasserstein_discriminator(real, fake) == pytest.approx(0.0)
    assert losses.wasserstein_discriminator(real, fake + 1) == pytest.approx(1.0)
    assert losses.wasserstein_generator(fake) == pytest.approx(-2.0)


def test_logistic_terms() -> None:
    zero = torch.zeros(3)
    assert losses.logistic_discriminator(zero, zero) == pytest.approx(2 * math.log(2))
    assert losses.logistic_discriminator(torch.tensor([2.0]), torch.tensor([-1.0])) == pytest.approx(
        math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
    )
    assert losses.logistic_generator(torch.tensor([3.0])) == pytest.approx(math.log(1 + math.exp(-3)))


def gradients_of(critic: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The critic's input gradients at points."""
    found: Tensor = torch.func.grad(lambda images: critic(images).sum())(points)
    return found


def test_gradient_penalty_of_a_linear_critic_is_known() -> None:
    # D(x) = sum(w * x) has the gradient w everywhere: 12 pixels of 0.5 have norm sqrt(3).
    def critic(images: Tensor) -> Tensor:
        return (0.5 * images).sum((1, 2, 3))

    real, fake = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    gradients = gradients_of(critic, losses.between(real, fake, torch.rand(2)))
    assert losses.gradient_penalty(gradients) == pytest.approx((math.sqrt(3) - 1) ** 2, rel=1e-6)
    assert losses.r1_penalty(gradients_of(critic, real)) == pytest.approx(3.0, rel=1e-6)


def test_gradient_penalty_is_taken_between_real_and_fake() -> None:
    # D(x) = x^2 / 2 has the gradient x: one pixel, so the norm is |a x + (1 - a) y|.
    real, fake, alpha = torch.full((1, 1, 1, 1), 4.0), torch.full((1, 1, 1, 1), 2.0), torch.tensor([0.25])
    gradients = gradients_of(lambda x: x.square() / 2, losses.between(real, fake, alpha))
    assert losses.gradient_penalty(gradients) == pytest.approx((2.5 - 1) ** 2)


def test_gradient_penalty_trains_the_critic_as_autograd_does() -> None:
    torch.manual_seed(0)
    critic = Discriminator(16, 5, 4, 3).double()
    real, fake, alpha = torch.randn(3, 3, 16, 16).double(), torch.randn(3, 3, 16, 16).double(), torch.rand(3).double()
    losses.gradient_penalty(critic.input_gradient(losses.between(real, fake, alpha))).backward()
    # Biases shift activations, not slopes: the penalty does not train them.
    ours = [each.weight.grad.clone() for each in critic.trunk[::2] if each.weight.grad is not None]
    critic.zero_grad()
    points = torch.lerp(fake, real, alpha[:, None, None, None]).requires_grad_()
    (gradients,) = torch.autograd.grad(critic(points).logits.sum(), points, create_graph=True)
    ((gradients.flatten(1).norm(dim=1) - 1) ** 2).mean().backward()
    theirs = [each.weight.grad for each in critic.trunk[::2]]
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_concordance_by_hand() -> None:
    # x = 1, 2, 3 and y = 2, 4, 6: variances 2/3 and 8/3, covariance 4/3, means 2 and 4 => (8/3) / (10/3 + 4) = 4/11.
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])
    assert losses.concordance(x, y).item() == pytest.approx(4 / 11)
    assert losses.concordance_loss(x, y).item() == pytest.approx(7 / 11)


def test_concordance_loss_sums_over_dimensions() -> None:
    x = torch.randn(9, 4)
    assert losses.concordance_loss(x, x).item() == pytest.approx(0, abs=1e-5)
    assert losses.concordance_loss(x, -x + 2 * x.mean(0)).item() == pytest.approx(8, abs=1e-4)
    assert losses.concordance_loss(x, -x + 2 * x.mean(0), "mean").item() == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_concordance_of_constant_dimensions_is_finite_with_gradient(rows: int) -> None:
    estimate = torch.ones(rows, 2, requires_grad=True)
    loss = losses.concordance_loss(estimate, torch.ones(rows, 2))
    loss.backward()
    assert torch.isfinite(loss) and estimate.grad is not None and torch.isfinite(estimate.grad).all()


def test_attribute_loss_sums_over_attributes_and_averages_over_the_batch() -> None:
    logits, target = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert losses.attribute_loss(logits, target).item() == pytest.approx(3 * math.log(2))


def test_class_loss_is_cross_entropy() -> None:
    logits, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert losses.class_loss(logits, target).item() == pytest.approx(math.log(1 + math.e))


def test_identity_asks_nothing_of_images_that_are_near_enough() -> None:
    images = torch.zeros(3, 3, 2, 2)
    same = torch.stack([torch.full((3, 2, 2), 0.02), torch.full((3, 2, 2), -0.5), torch.zeros(3, 2, 2)])
    same[2, 0] = 0.3  # 0.1 of the whole image
    same.requires_grad_()
    loss = losses.identity_loss(images, same, 0.05)
    assert loss.item() == pytest.approx((0 + 0.45 + 0.05) / 3)
    loss.backward()
    assert same.grad is not None and [bool(grad.any()) for grad in same.grad] == [False, True, True]
    assert losses.identity_loss(images, same).item() == pytest.approx(losses.cycle_loss(images, same).item())


def test_cycle_loss_is_mean_absolute_difference() -> None:
    assert losses.cycle_loss(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), -0.5)).item() == pytest.approx(0.5)
