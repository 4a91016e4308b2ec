"""Augmentation shifts and cuts where it is told to, alike for any images, and lets gradients through."""

import torch

from featgan.networks.augmentation import augment


def test_the_middle_does_not_shift_and_the_ends_shift_by_an_eighth() -> None:
    images = torch.rand(3, 3, 16, 16) + 1
    # The squares' centres lie in the first corner, so the last rows and columns stay whole.
    places = torch.tensor([[0.5, 0.5, 0, 0], [0.999, 0.5, 0, 0], [0.5, 0, 0, 0]])
    middle, down, left = augment(images, places)
    torch.testing.assert_close(middle[:, 4:, 4:], images[0, :, 4:, 4:])
    torch.testing.assert_close(down[:, 4:14, 4:], images[1, :, 6:, 4:])
    assert (down[:, 14:] == 0).all(), "what comes in from outside is grey"
    torch.testing.assert_close(left[:, 4:, 4:], images[2, :, 4:, 2:14])


def test_a_square_of_half_the_side_is_cut_out() -> None:
    cut = augment(torch.ones(1, 3, 16, 16), torch.tensor([[0.5, 0.5, 0.5, 0.25]]))[0, 0] == 0
    rows, columns = torch.nonzero(cut, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 11, 1, 7)
    assert cut.sum() == 7 * 7


def test_gradients_reach_what_is_shown_and_nothing_else() -> None:
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    places = torch.tensor([[0.5, 0.5, 0.5, 0.5]]).expand(2, -1)
    augment(images, places).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, (augment(images.detach() + 1, places) != 0).float())
