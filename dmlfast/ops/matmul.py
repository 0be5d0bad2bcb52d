"""Matrix products by cuBLAS, on a GPU."""

import torch


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, again: bool) -> None:
    """``out`` (n, d), float32, becomes ``a`` (n, m) times ``b`` (m, d), both bfloat16; again: grows
    by it.
    """
    beta = 1 if again else 0
    if out.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, beta=beta, out=out)
    else:  # whose products are of one dtype
        torch.addmm(out, a.float(), b.float(), beta=beta, out=out)
