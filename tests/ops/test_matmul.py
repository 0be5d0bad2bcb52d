"""Products of bfloat16 matrices with float32 sums."""

import pytest
import torch

from dmlfast.ops.matmul import add_product

from .helpers import generator

BRAIN = torch.bfloat16
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def matrices(n: int, m: int, d: int, turned: bool, device: str) -> tuple[torch.Tensor, ...]:
    """(n, m) and (m, d), parts of larger ones; the first one turned around or not."""
    random = generator(n + m + d)
    a = torch.randn(m + 8, n + 8, generator=random) if turned else None
    a = torch.randn(n + 8, m + 8, generator=random) if a is None else a.T
    b = torch.randn(m + 3, d + 8, generator=random)
    return a.to(device, BRAIN)[:n, :m], b.to(device, BRAIN)[:m, :d]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("n", "m", "d"), [(1, 1, 1), (1, 300, 16), (3, 70, 16), (130, 257, 24), (128, 512, 64)]
)
@pytest.mark.parametrize("device", DEVICES)
def test_is_right(n, m, d, turned, device):
    a, b = matrices(n, m, d, turned, device)
    exact = a.double() @ b.double()
    out = torch.full((n, d), torch.nan, device=device)
    add_product(out, a, b, again=False)
    assert (out - exact).abs().max() <= 1e-5 * (a.abs().double() @ b.abs().double()).max()
    once = out.clone()
    add_product(out, a, b, again=True)
    torch.testing.assert_close(out, 2 * once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_goes_into_a_part_of_a_tensor(device):
    a, b = matrices(5, 9, 8, False, device)
    out = torch.zeros(11, 8, device=device)
    add_product(out[3:8], a, b, again=False)
    assert not out[:3].any()
    assert not out[8:].any()
    torch.testing.assert_close(out[3:8], a.float() @ b.float())


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_changes_nothing(device):
    a, b = matrices(40, 300, 16, False, device)
    expected, found = torch.empty(40, 16, device=device), torch.empty(40, 16, device=device)
    add_product(expected, a, b, again=False)
    with torch.autocast(device, dtype=BRAIN):
        add_product(found, a, b, again=False)
    assert torch.equal(found, expected)


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="torch does not know it by shape alone")
def test_the_product_of_a_gpu_has_the_form_that_is_used():
    """Torch knows it by shape and dtype on any machine."""
    a, b = matrices(6, 8, 16, True, "meta")
    add_product(torch.empty(6, 16, device="meta"), a, b, again=True)
