"""What tests/ops/test_cuda_blocks.py emulates, on a GPU that has these kernels."""

import pytest
import torch

from dmlfast.ops import gpu

from .test_cuda_blocks import (  # noqa: F401
    launched,
    test_a_product_is_added_or_takes_the_place,
    test_blocks_in_several_parts,
    test_lifted,
    test_lifted_over_columns_of_their_own,
    test_near_rows,
    test_pairs,
    test_statistics_of_any_span,
    test_strides_of_any_kind,
    test_what_is_not_finite_poisons_everything,
)


def why_not() -> str | None:
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9:
        return "kernels for sm_90"
    return gpu.why_no_cuda()


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
