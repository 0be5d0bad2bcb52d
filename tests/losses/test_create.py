"""Losses by name."""

import pytest

from dmlfast.errors import UserError
from dmlfast.losses import LiftedStructuredLoss, create_loss, loss_names


def test_every_name_makes_a_loss():
    assert "lifted" in loss_names()
    assert isinstance(create_loss("lifted"), LiftedStructuredLoss)


def test_keyword_arguments_go_to_the_loss():
    assert create_loss("lifted", margin=0.3, impl="reference").margin == 0.3


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown loss 'lited': did you mean 'lifted'\?"):
        create_loss("lited")
