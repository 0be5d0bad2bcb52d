"""What tests/ops/test_cuda_blocks.py and tests/ops/test_norm_softmax_cuda.py emulate, on a GPU that
has these kernels.
"""

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
from .test_norm_softmax_cuda import (  # noqa: F401
    test_a_class_alone_has_no_others,
    test_are_right,
    test_are_right_however_they_are_cut,
    test_are_right_in_blocks_with_a_running_maximum,
    test_columns_and_rows_may_be_strided,
    test_exponents_far_apart_keep_their_digits,
    test_lengths_do_not_matter,
    test_many_classes_take_a_ring_of_tiles_in_several_parts,
    test_own_classes_are_left_out_wherever_they_are,
    test_rows_of_the_same_dtype_have_kernels,
    test_serve_the_loss,
    test_take_any_size,
    test_the_widest_rows_have_kernels,
    test_zeros_have_no_direction,
)
from .test_norm_softmax_cuda import (  # noqa: F401
    test_what_is_not_finite_makes_all_nan as test_what_is_not_finite_makes_a_softmax_nan,
)


def why_not() -> str | None:
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9:
        return "kernels for sm_90"
    return gpu.why_no_cuda()


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
