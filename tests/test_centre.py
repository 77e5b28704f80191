"""The centre: what it is made of, and that it does not depend on how the tokens arrive."""

import pytest
import torch
from cached_layers import chunk, fill, layer, stored_keys

from int4kv.centre import first_real_centre


def test_centre_is_the_mean_of_the_first_real_keys():
    """Keys far from zero: what they share is kept, to the noise of three independent ones."""
    k, v = chunk(50, batch=2)
    k = k + torch.linspace(-9, 9, 64, device=k.device).sign() * 40.0
    target = layer()
    target.padding = torch.ones(2, 50, dtype=torch.long)
    target.padding[1, :10] = 0
    fill(target, k, v, [50])
    assert torch.allclose(target.centres[0][0], k[0, :, :32].mean(1), rtol=1e-3)
    assert torch.allclose(target.centres[0][1], k[1, :, 10:42].mean(1), rtol=1e-3)
    frozen = target.centres[0].clone()
    target.update(*chunk(90, batch=2, seed=5))
    assert torch.equal(target.centres[0], frozen) and target.early is None


def test_channels_that_only_scatter_are_not_centred():
    """Half of the pairs are noise around zero: most of their chance mean is left alone, all of the other half's goes."""
    generator = torch.Generator().manual_seed(0)
    k, shared = torch.randn(1, 2, 32, 64, generator=generator), (torch.arange(64) % 32 < 16).float() * 20.0
    centre = first_real_centre(k + shared, torch.ones(1, 32, dtype=torch.bool), 32)[0]
    scattered = shared == 0
    assert (centre[:, scattered].abs().sum() < 0.1 * k[0].mean(1)[:, scattered].abs().sum()) and (centre[:, ~scattered] > 18).all()


def test_centre_works_from_a_single_token():
    k, v = chunk(1)
    target = layer()
    fill(target, k, v, [1])
    assert torch.equal(target.centres[0], k[:, :, 0])


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("sizes", [[1] * 100, [20, 30, 50], [31, 1, 1, 67], [40, 60], [5, 95]])
def test_centre_and_codes_do_not_depend_on_the_chunks(window, sizes):
    k, v = chunk(100)
    k = k + 50.0
    whole, split = layer(window, prefill="packed"), layer(window, prefill="packed")
    fill(whole, k, v, [100])
    fill(split, k, v, sizes)
    assert torch.equal(whole.centres[0], split.centres[0])
    first = 100 - 23 if window else 0
    assert torch.equal(stored_keys(whole, first, 100), stored_keys(split, first, 100))
    newest = torch.arange(100 - 32, 100) % 64
    assert torch.equal(whole.recent.tensors[0][:, :, newest], split.recent.tensors[0][:, :, newest])


def test_rejected_drafts_do_not_stay_in_the_centre():
    """A short prompt with drafts settles the centre too early; the crop unsettles it."""
    k, v = chunk(60)
    drafts = chunk(20, seed=8)
    plain, drafted = layer(prefill="packed"), layer(prefill="packed")
    fill(plain, k, v, [20] + [1] * 40)
    fill(drafted, torch.cat([k[:, :, :20], drafts[0]], 2), torch.cat([v[:, :, :20], drafts[1]], 2), [40])
    drafted.crop(-20)
    for t in range(20, 60):
        drafted.update(k[:, :, t : t + 1], v[:, :, t : t + 1])
    assert torch.equal(plain.centres[0], drafted.centres[0])
    assert torch.equal(stored_keys(plain, 0, 60), stored_keys(drafted, 0, 60))
