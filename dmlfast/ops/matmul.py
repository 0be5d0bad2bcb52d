"""Products of bfloat16 matrices with float32 sums, by the library that torch has for them."""

import torch


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, again: bool) -> None:
    """``out`` (n, d), float32, is or with ``again`` grows by the product of ``a`` (n, m) and ``b``
    (m, d), bfloat16 of any strides.
    """
    beta = float(again)  # with 0 what is in ``out`` is not looked at
    if out.device.type == "cpu":  # torch has no such product there, and kernels are emulated
        torch.addmm(out, a.float(), b.float(), beta=beta, out=out)
    else:
        torch.addmm(out, a, b, out_dtype=torch.float32, beta=beta, out=out)
