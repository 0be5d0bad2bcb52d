"""Losses by name."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dmlfast.losses
from dmlfast.errors import UserError
from dmlfast.losses import (
    ContrastiveLoss,
    CrossBatchMemory,
    GeneralizedLiftedStructuredLoss,
    LiftedStructuredLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
    TripletLoss,
    create_loss,
    loss_names,
    parse_loss_options,
    register_loss,
)
from dmlfast.training import TrainConfig, train

CLASSES = {
    "contrastive": ContrastiveLoss,
    "generalized-lifted": GeneralizedLiftedStructuredLoss,
    "lifted": LiftedStructuredLoss,
    "multi-similarity": MultiSimilarityLoss,
    "ntxent": NTXentLoss,
    "supcon": SupConLoss,
    "triplet": TripletLoss,
}


def test_every_name_makes_a_loss():
    assert set(CLASSES) <= set(loss_names())  # others may have been registered
    for name, kind in CLASSES.items():
        assert type(create_loss(name)) is kind


MARGINS = {"contrastive": "neg_margin", "multi-similarity": "base"}  # where it is no "margin"


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("ntxent", "supcon")])
def test_keyword_arguments_go_to_the_loss(name):
    loss = create_loss(name, margin=0.3, impl="reference")
    assert getattr(loss, MARGINS.get(name, "margin")) == 0.3
    assert loss.impl == "reference"


def test_the_contrastive_loss_takes_its_own_names_too():
    loss = create_loss("contrastive", pos_margin=0.1, neg_margin=0.7)
    assert (loss.pos_margin, loss.neg_margin) == (0.1, 0.7)
    assert create_loss("contrastive").neg_margin == 1.0


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown loss 'lited': did you mean 'lifted'\?"):
        create_loss("lited")


def test_options_are_read_from_a_text():
    options = parse_loss_options("mining=semihard,is-so=True, margin_of=2,x=1e-3,k=3")
    assert options == {"mining": "semihard", "is_so": True, "margin_of": 2, "x": 1e-3, "k": 3}
    assert type(options["k"]) is int
    assert parse_loss_options(None) == parse_loss_options("") == {}
    loss = create_loss("triplet", **parse_loss_options("mining=semihard,reduction=sum"))
    assert (loss.mining, loss.reduction) == ("semihard", "sum")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("triplet", "mining", "loss options must be NAME=VALUE,NAME=VALUE, not 'mining'"),
        ("triplet", "margin=2", "'margin' is not a loss option but a setting: --margin"),
        ("lifted", "normalize-embeddings=true", "but a setting: --normalize"),
        ("triplet", "minig=all", r"unknown option of the triplet loss 'minig': did you mean 'min"),
        ("contrastive", "squared=no", "squared of the contrastive loss must be true or false, not"),
        ("contrastive", "pos-margin=true", "pos_margin of the contrastive loss must be a number"),
        ("supcon", "base=1", "unknown option of the supcon loss 'base'"),
        ("triplet", "mining=3", "mining of the triplet loss must be a string, not 3"),
    ],
)
def test_options_that_a_loss_does_not_take_are_refused(name, text, message):
    with pytest.raises(UserError, match=message):
        create_loss(name, **parse_loss_options(text))


def test_a_margin_is_given_once():
    with pytest.raises(UserError, match="given twice, also as neg_margin"):
        create_loss("contrastive", margin=1.0, neg_margin=2.0)


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("norm-softmax", {}, "num_classes and embedding_dim"),
        ("norm-softmax", {"num_classes": 3}, "embedding_dim"),
        ("proxy-anchor", {}, "num_classes and embedding_dim"),
        ("pddm", {"margin": 1.0}, "embedding_dim"),
        ("bier", {}, "groups"),
        ("a-bier", {}, "groups"),
    ],
)
def test_what_a_loss_cannot_be_made_without_is_named(name, options, needed):
    with pytest.raises(UserError, match=rf"^the {name} loss needs {needed}$"):
        create_loss(name, **options)


def test_a_loss_of_ones_own_can_be_registered(monkeypatch):
    monkeypatch.setattr("dmlfast.losses._LOSSES", dict(dmlfast.losses._LOSSES))

    class Own(torch.nn.Module):
        def __init__(self, margin: float = 2.0, impl: str = "auto") -> None:
            super().__init__()
            self.margin = margin

    register_loss("own", Own)
    register_loss("own", Own)
    assert create_loss("own", margin=3.0).margin == 3.0
    with pytest.raises(ValueError, match="there is a loss 'lifted' already"):
        register_loss("lifted", Own)


def test_a_loss_of_ones_own_need_not_have_named_options(monkeypatch):
    monkeypatch.setattr("dmlfast.losses._LOSSES", dict(dmlfast.losses._LOSSES))
    register_loss("any", lambda size, *more, margin=1.0, **others: torch.nn.Linear(size, 1))
    assert create_loss("any", size=2).weight.shape == (1, 2)
    with pytest.raises(UserError, match=r"^the any loss needs size$"):
        create_loss("any", margin=2.0)


class Plain(torch.nn.Module):
    """Takes neither a margin nor a backend."""

    def forward(self, embeddings, labels):
        return embeddings.square().mean()


def test_a_loss_without_a_backend_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(dmlfast.losses, "_LOSSES", dmlfast.losses._LOSSES | {"plain": Plain})
    config = TrainConfig(
        dataset="digits", batch_size=12, embedding_dim=4, max_steps=1, loss="plain", device="cpu"
    )
    assert train(config, tmp_path / "run").checkpoint("last").step == 1
    with pytest.raises(UserError, match="unknown option of the plain loss 'impl'"):
        train(replace(config, impl="cpu"), tmp_path / "other")


def test_the_loss_of_the_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(dmlfast.losses, "_LOSSES", dict(dmlfast.losses._LOSSES))
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.partition("## A loss of your own")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    names: dict = {}
    exec(code, names)
    rows, labels = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) // 3
    loss = names["SoftMargin"](0.5, impl="reference")
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), rows.requires_grad_())
    distances, same = torch.cdist(rows, rows), labels == labels[:, None]
    furthest = distances.masked_fill(~same | torch.eye(12).bool(), -torch.inf).logsumexp(1)
    nearest = (0.5 - distances).masked_fill(same, -torch.inf).logsumexp(1)
    expected = torch.nn.functional.softplus(furthest + nearest).mean()
    torch.testing.assert_close(loss(rows, labels), expected)
    CrossBatchMemory(create_loss("soft-margin"), 5, 24)(rows.float(), labels).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(rows, labels)
    config = TrainConfig(
        dataset="digits", batch_size=12, embedding_dim=4, max_steps=1, loss="soft-margin",
        margin=0.5, device="cpu",
    )  # fmt: skip
    assert train(config, tmp_path / "run").checkpoint("last").step == 1
