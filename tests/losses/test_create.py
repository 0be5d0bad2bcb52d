"""Losses by name."""

import pytest

from dmlfast.errors import UserError
from dmlfast.losses import (
    ContrastiveLoss,
    GeneralizedLiftedStructuredLoss,
    LiftedStructuredLoss,
    TripletLoss,
    create_loss,
    loss_names,
)

CLASSES = {
    "contrastive": ContrastiveLoss,
    "generalized-lifted": GeneralizedLiftedStructuredLoss,
    "lifted": LiftedStructuredLoss,
    "triplet": TripletLoss,
}


def test_every_name_makes_a_loss():
    assert loss_names() == sorted(CLASSES)
    for name, kind in CLASSES.items():
        assert type(create_loss(name)) is kind


@pytest.mark.parametrize("name", CLASSES)
def test_keyword_arguments_go_to_the_loss(name):
    loss = create_loss(name, margin=0.3, impl="reference")
    assert (loss.neg_margin if name == "contrastive" else loss.margin) == 0.3
    assert loss.impl == "reference"


def test_the_contrastive_loss_takes_its_own_names_too():
    loss = create_loss("contrastive", pos_margin=0.1, neg_margin=0.7)
    assert (loss.pos_margin, loss.neg_margin) == (0.1, 0.7)
    assert create_loss("contrastive").neg_margin == 1.0


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown loss 'lited': did you mean 'lifted'\?"):
        create_loss("lited")
