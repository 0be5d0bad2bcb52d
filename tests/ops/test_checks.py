"""Every wrong argument raises one line that names it."""

import pytest
import torch

from dmlfast import ops

X, Y = torch.zeros(4, 3), torch.arange(4)
R, RY = torch.zeros(5, 3), torch.arange(5)

# what changes from a right call with ref_emb, the error, and what the message says
WRONG = {
    "embeddings of one dimension": (
        {"embeddings": X[0]},
        ValueError,
        r"embeddings.*\(N, D\).*\(3,\)",
    ),
    "embeddings without columns": ({"embeddings": X[:, :0]}, ValueError, r"embeddings.*D >= 1"),
    "integer embeddings": ({"embeddings": X.long()}, TypeError, "embeddings.*floating.*int64"),
    "complex embeddings": ({"embeddings": X.cfloat()}, TypeError, "embeddings.*floating.*complex"),
    "a list for embeddings": ({"embeddings": X.tolist()}, TypeError, "embeddings.*Tensor.*list"),
    "sparse embeddings": ({"embeddings": X.to_sparse()}, TypeError, "embeddings.*dense.*sparse"),
    "labels of two dimensions": ({"labels": Y[:, None]}, ValueError, r"labels.*\(4,\).*\(4, 1\)"),
    "too few labels": ({"labels": Y[:3]}, ValueError, r"labels.*\(4,\).*\(3,\)"),
    "float labels": ({"labels": Y.float()}, TypeError, "labels.*integer.*float32"),
    "bool labels": ({"labels": Y.bool()}, TypeError, "labels.*integer.*bool"),
    "a list for labels": ({"labels": [0, 1, 2, 3]}, TypeError, "labels.*Tensor.*list"),
    "labels elsewhere": ({"labels": Y.to("meta")}, ValueError, "labels.*device.*cpu.*meta"),
    "ref_emb of one dimension": ({"ref_emb": R[0]}, ValueError, r"ref_emb.*\(N, D\)"),
    "a wider ref_emb": ({"ref_emb": torch.zeros(5, 4)}, ValueError, "ref_emb.*width.*3.*4"),
    "ref_emb elsewhere": ({"ref_emb": R.to("meta")}, ValueError, "ref_emb.*device.*cpu.*meta"),
    "a list for ref_emb": ({"ref_emb": R.tolist()}, TypeError, "ref_emb.*Tensor.*list"),
    "ref_emb in float64": ({"ref_emb": R.double()}, TypeError, "ref_emb.*float64.*float32"),
    "embeddings in float64": ({"embeddings": X.double()}, TypeError, "ref_emb.*float32.*float64"),
    "no ref_labels": ({"ref_labels": None}, ValueError, "ref_labels.*missing"),
    "too many ref_labels": (
        {"ref_labels": torch.arange(6)},
        ValueError,
        r"ref_labels.*\(5,\).*\(6,\)",
    ),
    "float ref_labels": ({"ref_labels": RY.float()}, TypeError, "ref_labels.*integer"),
    "ref_labels elsewhere": ({"ref_labels": RY.to("meta")}, ValueError, "ref_labels.*device"),
    "ref_labels alone": ({"ref_emb": None}, ValueError, "ref_labels.*without ref_emb"),
    "self_index alone": (
        {"ref_emb": None, "ref_labels": None, "self_index": Y},
        ValueError,
        "self_index.*without ref_emb",
    ),
    "self_index of the columns": ({"self_index": RY}, ValueError, r"self_index.*\(4,\).*\(5,\)"),
    "float self_index": ({"self_index": Y.float()}, TypeError, "self_index.*integer"),
    "self_index elsewhere": ({"self_index": Y.to("meta")}, ValueError, "self_index.*device"),
}
WRONG_LOSS = {
    f"a margin of {value}": ({"margin": value}, ValueError, "margin.*finite number, not")
    for value in (float("nan"), float("inf"), -float("inf"))
}
OF_SUMS = {"reduce", "column_bias", "row_floor"}  # which maxima do not take
WRONG_REDUCTION = {
    "a scale that is not finite": ({"scale": float("nan")}, ValueError, "scale.*finite.*nan"),
    "an infinite offset": ({"offset": -float("inf")}, ValueError, "offset.*finite.*-inf"),
    "no labels": ({"labels": None}, ValueError, "labels.*missing.*negative"),
    "an unknown score": ({"score": "cosine"}, ValueError, "score.*dot, distance.*'cosine'"),
    "an unknown selection": ({"select": "hard"}, ValueError, "select.*negative.*'hard'"),
    "an unknown reduction": ({"reduce": "max"}, ValueError, "reduce.*logsumexp, sum.*'max'"),
    "a short column_bias": (
        {"column_bias": torch.zeros(4)},
        ValueError,
        r"column_bias.*\(5,\).*\(4,\)",
    ),
    "a wide column_bias": ({"column_bias": torch.zeros(1, 5)}, ValueError, "column_bias.*shape"),
    "an integer column_bias": ({"column_bias": RY}, TypeError, "column_bias.*floating"),
    "a float64 column_bias": ({"column_bias": R[:, 0].double()}, TypeError, "column_bias.*float64"),
    "column_bias elsewhere": (
        {"column_bias": R[:, 0].to("meta")},
        ValueError,
        "column_bias.*device",
    ),
    "a row_floor of the columns": (
        {"row_floor": torch.zeros(5)},
        ValueError,
        r"row_floor.*\(4,\).*\(5,\)",
    ),
    "an integer row_floor": ({"row_floor": Y}, TypeError, "row_floor.*floating"),
    "a float64 row_floor": ({"row_floor": X[:, 0].double()}, TypeError, "row_floor.*float64"),
    "row_floor elsewhere": ({"row_floor": X[:, 0].to("meta")}, ValueError, "row_floor.*device"),
    "a number for column_bias": ({"column_bias": 0.5}, TypeError, "column_bias.*Tensor.*float"),
}
WRONG_LOSS |= {
    "a margin that is a text": ({"margin": "a"}, TypeError, "^margin must be a finite.* not 'a'$"),
    "no margin": ({"margin": None}, TypeError, "^margin must be a finite number, not None$"),
    "a margin that is true": ({"margin": True}, ValueError, "^margin must be a finite.* not True$"),
}
CASES = [(ops.lifted_structured_loss, *case) for case in (WRONG | WRONG_LOSS).values()]
CASES += [(ops.pair_reduce, *case) for case in (WRONG | WRONG_REDUCTION).values()]
OF_TERMS = [case for case in WRONG_REDUCTION.values() if not case[0].keys() & OF_SUMS]
CASES += [(ops.pair_max, *case) for case in (*WRONG.values(), *OF_TERMS)]


@pytest.mark.parametrize(("op", "change", "error", "message"), CASES)
def test_a_wrong_argument_is_named(op, change, error, message):
    right = {"embeddings": X, "labels": Y, "ref_emb": R, "ref_labels": RY}
    op(**right)
    with pytest.raises(error, match=message) as caught:
        op(**(right | change))
    assert "\n" not in str(caught.value)
