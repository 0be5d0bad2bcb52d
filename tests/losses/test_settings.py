"""What is wrong with the settings of a loss is said when it is made."""

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch

from dmlfast.losses import (
    ABIERLoss,
    BIERLoss,
    ContrastiveLoss,
    GeneralizedLiftedStructuredLoss,
    LiftedStructuredLoss,
    MultiSimilarityLoss,
    NormSoftmaxLoss,
    NTXentLoss,
    PairLoss,
    PDDMLoss,
    ProxyAnchorLoss,
    SupConLoss,
    TripletLoss,
)
from dmlfast.ops import dispatch

LOSSES = {
    ABIERLoss: {"groups": (2, 4)},
    BIERLoss: {"groups": (2, 4)},
    ContrastiveLoss: {},
    GeneralizedLiftedStructuredLoss: {},
    LiftedStructuredLoss: {},
    MultiSimilarityLoss: {},
    NormSoftmaxLoss: {"num_classes": 2, "embedding_dim": 6},
    NTXentLoss: {},
    PDDMLoss: {"embedding_dim": 6},
    ProxyAnchorLoss: {"num_classes": 2, "embedding_dim": 6},
    SupConLoss: {},
    TripletLoss: {},
}  # with what they cannot be made without
ROWS, LABELS = torch.zeros(4, 6), torch.tensor([0, 0, 1, 1])
NAN, INFINITY = float("nan"), float("inf")


def settings_of(kind):
    """Those settings of all losses, as pairs, that are of a kind."""
    return [
        (loss, name)
        for loss in LOSSES
        for name, setting in inspect.signature(loss).parameters.items()
        if setting.annotation in (kind, kind | None)
    ]


def each(pairs):
    ids = [f"{loss.__name__}-{name}" for loss, name in pairs]
    return pytest.mark.parametrize(("loss", "name"), pairs, ids=ids)


each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
NAMES = [(loss, name) for loss, name in settings_of(str) if name != "impl"]


def refused(loss, error, message, **settings):
    with pytest.raises(error, match=message) as caught:
        loss(**LOSSES[loss] | settings)
    assert "\n" not in str(caught.value)


@each(settings_of(float))
def test_a_number_is_finite(loss, name):
    for value in ("x", [0.5], 1j):
        refused(loss, TypeError, f"^{name} must be a finite number, not ", **{name: value})
    for value in (NAN, INFINITY, -INFINITY, True):
        refused(loss, ValueError, f"^{name} must be a finite number, not {value}$", **{name: value})


@each(settings_of(int))
def test_a_whole_number_is_one(loss, name):
    for value in ("x", 1.5, True):
        refused(loss, TypeError, f"^{name} must be an integer, not {value!r}$", **{name: value})
    refused(loss, ValueError, rf"^{name} must be at least \d, not -1$", **{name: -1})


@each(NAMES)
def test_a_name_is_a_known_one(loss, name):
    for value in ("nonsense", 3, ["all"]):
        refused(loss, ValueError, rf"^{name} must be one of \w+, \w+.*, not ", **{name: value})


def test_every_kind_of_setting_was_found():
    assert (TripletLoss, "margin") in settings_of(float)
    assert {(BIERLoss, "margin"), (NormSoftmaxLoss, "class_fraction")} <= set(settings_of(float))
    assert {(TripletLoss, "mining"), (PDDMLoss, "per"), (BIERLoss, "norm_axis")} <= set(NAMES)
    assert {(NormSoftmaxLoss, "seed"), (PDDMLoss, "hidden_dim")} <= set(settings_of(int))
    assert {(ContrastiveLoss, "squared"), (PDDMLoss, "normalize_inputs")} <= set(settings_of(bool))


@each(settings_of(bool))
def test_what_is_true_or_false_is_that(loss, name):
    for value in ("false", 1, 0.0, None):
        refused(loss, TypeError, f"^{name} must be True or False, not {value!r}$", **{name: value})
    for value in (True, np.True_):
        loss(**LOSSES[loss] | {name: value})


def test_a_number_that_is_to_be_learned_is_refused():
    margin = torch.nn.Parameter(torch.tensor(0.5))
    refused(TripletLoss, TypeError, "^margin must be a number: it gets no gradient$", margin=margin)
    loss = LiftedStructuredLoss()
    loss.margin = margin
    with pytest.raises(TypeError, match="margin must be a number: it gets no gradient"):
        loss(ROWS, LABELS)


@pytest.mark.parametrize(
    ("loss", "name", "value", "message"),
    [
        (NormSoftmaxLoss, "temperature", 0, "must be above 0, not 0"),
        (NormSoftmaxLoss, "temperature", -0.5, "must be above 0, not -0.5"),
        (NormSoftmaxLoss, "label_smoothing", -0.1, "must be from 0 to 1, not -0.1"),
        (NormSoftmaxLoss, "label_smoothing", 1.5, "must be from 0 to 1, not 1.5"),
        (SupConLoss, "temperature", 0, "must be above 0, not 0"),
        (NTXentLoss, "temperature", 0, "must be above 0, not 0"),
        (MultiSimilarityLoss, "alpha", 0, "must be above 0, not 0"),
        (MultiSimilarityLoss, "beta", -2.0, "must be above 0, not -2.0"),
        (ProxyAnchorLoss, "alpha", 0, "must be above 0, not 0"),
    ],
)
def test_numbers_are_within_their_bounds(loss, name, value, message):
    refused(loss, ValueError, f"^{name} {message}$", **{name: value})


@each_loss
def test_an_unknown_backend_is_told_from_one_that_is_not_here(loss, monkeypatch):
    refused(loss, ValueError, r"^unknown impl 'cpuu': did you mean 'cpu'\?", impl="cpuu")
    for value in (None, 3, ["cpu"], ""):
        refused(loss, ValueError, r"^unknown impl .*\(known: auto, ", impl=value)
    for name, backend in list(dispatch.BACKENDS.items()):
        absent = dataclasses.replace(backend, why_not=lambda: "not here")
        monkeypatch.setitem(dispatch.BACKENDS, name, absent)
        assert loss(**LOSSES[loss], impl=name).impl == name
    assert loss(**LOSSES[loss], impl="auto").impl == "auto"


def test_a_loss_of_ones_own_has_its_backend_checked_too():
    class Own(PairLoss):
        pass

    with pytest.raises(ValueError, match=r"^unknown impl 'cpuu'"):
        Own(impl="cpuu")


@pytest.mark.parametrize("value", [1, np.float32(1), np.int64(1), torch.tensor(1.0)], ids=repr)
def test_numbers_of_other_kinds_are_taken(value):
    for loss in (LiftedStructuredLoss(value), TripletLoss(value), BIERLoss((2, 4), margin=value)):
        assert (loss.margin, type(loss.margin)) == (1.0, float)
    assert PDDMLoss(np.int64(6), torch.tensor(3)).unit.joint.weight.shape == (3, 6)


@pytest.mark.parametrize(
    ("loss", "name", "value", "message"),
    [
        (LiftedStructuredLoss, "margin", "x", "margin must be a finite number"),
        (GeneralizedLiftedStructuredLoss, "margin", "x", "offset must be a finite number"),
        (ContrastiveLoss, "pos_margin", "x", "pos_margin must be a finite number"),
        (ContrastiveLoss, "reduction", "max", "reduction must be one of nonzero, mean, sum"),
        (TripletLoss, "margin", "x", "margin must be a finite number"),
        (TripletLoss, "mining", "semi", "mining must be one of all, semihard, hardest"),
        (NormSoftmaxLoss, "temperature", 0, "temperature must be above 0"),
        (SupConLoss, "temperature", 0, "temperature must be above 0"),
        (NTXentLoss, "temperature", -1, "temperature must be above 0"),
        (MultiSimilarityLoss, "beta", -1, "beta must be above 0"),
        (MultiSimilarityLoss, "base", "x", "base must be a finite number"),
        (MultiSimilarityLoss, "epsilon", "x", "epsilon must be a finite number"),
        (ProxyAnchorLoss, "alpha", 0, "alpha must be above 0"),
        (ProxyAnchorLoss, "margin", "x", "margin must be a finite number"),
        (PDDMLoss, "per", "foo", "per must be one of batch, class, anchor"),
        (BIERLoss, "boosting", "foo", "boosting must be one of eta"),
        *((loss, "impl", "cpuu", "unknown impl 'cpuu'") for loss in LOSSES),
    ],
)
def test_what_was_set_later_is_told_by_the_call(loss, name, value, message):
    made = loss(**LOSSES[loss]).eval()
    setattr(made, name, value)
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        made(ROWS, LABELS)


def test_a_margin_that_changes_leaves_a_graph_whole():
    """Changed once, torch takes it for a variable."""
    loss, x = LiftedStructuredLoss(), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for margin in (1.0, 0.7, 0.3):
        loss.margin = margin
        torch.testing.assert_close(compiled(x, LABELS), loss(x, LABELS))


@each_loss
def test_copies_are_made_alike(loss):
    made = loss(**LOSSES[loss], impl="reference")
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert repr(other) == repr(made)
        assert torch.equal(other.eval()(ROWS, LABELS), made.eval()(ROWS, LABELS))
