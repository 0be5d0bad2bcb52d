"""The hard neighbours of positive pairs, and the step that is trained on them."""

import numpy as np
import pytest
import torch

from dmlfast.training import loop
from dmlfast.training.distributed import World
from dmlfast.training.neighbours import hard_neighbours

from .helpers import tiny_config

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
HARD = {"sampler": "hard-neighbours", "candidates": 3, "batch_size": 12}


def test_each_image_of_a_pair_takes_the_nearest_that_is_left():
    # places on a line, two groups of a pair and four candidates
    places = torch.tensor([0.0, 1.0, 5.0, 0.2, 9.0, -3.0, 6.0, 7.0, 0.9, 5.5, 2.0, 6.6])
    labels = torch.tensor([1, 1, 2, 1, 3, 4, 2, 2, 3, 2, 5, 1])
    rows = hard_neighbours(places[:, None], labels, 6)
    # 0: 8 at 0.9, as 3 is of its class; 1: 10 at 1, as 8 is taken; 6 (class 2): 11; 7: 4 at 2
    assert rows.tolist() == [0, 1, 8, 10, 6, 7, 11, 4]
    assert torch.equal(hard_neighbours(places[:, None], labels.numpy(), 6), rows)


def test_candidates_of_the_own_class_are_the_last_resort():
    labels = torch.tensor([0, 0, 0, 1])
    embeddings = torch.tensor([[0.0], [1.0], [0.1], [50.0]])
    assert hard_neighbours(embeddings, labels, 4).tolist() == [0, 1, 3, 2]


def test_neighbours_are_those_of_a_plain_search():
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(8 * 10, 5, generator=generator), torch.arange(80) % 7
    labels.view(8, 10)[:, 1] = labels.view(8, 10)[:, 0]
    found = hard_neighbours(embeddings, labels, 10).view(8, 4)
    grid, taken = torch.arange(80).view(8, 10), set()
    assert torch.equal(found[:, :2], grid[:, :2])
    for image, neighbour in zip(found[:, :2].flatten(), found[:, 2:].flatten(), strict=True):
        left = [
            int(row)
            for row in grid[:, 2:].flatten()
            if labels[row] != labels[image] and int(row) not in taken
        ]
        distances = [float((embeddings[image] - embeddings[row]).norm()) for row in left]
        assert neighbour == left[int(np.argmin(distances))]
        taken.add(int(neighbour))


def test_a_step_trains_on_pairs_and_their_neighbours_as_the_network_sees_them():
    trainer = loop.Trainer(tiny_config(**HARD, augment=False, head_dropout=0.5), ALONE)
    images, labels = next(iter(trainer.batches()))
    assert len(images) == trainer.sampler.rows == 3 * 8
    seen, buffers = [], {name: value.clone() for name, value in trainer.model.named_buffers()}
    network = trainer.network

    def watch(model, args):
        seen.append((args[0], model.training))

    trainer.model.register_forward_pre_hook(watch)
    with torch.no_grad():
        expected = hard_neighbours(trainer.model.eval()(images), labels, 8)
    trainer.model.train()
    chosen, chosen_labels = trainer.with_neighbours(images, labels)
    assert torch.equal(chosen, images[expected])
    assert torch.equal(chosen_labels, labels[expected])
    for name, value in trainer.model.named_buffers():
        assert torch.equal(value, buffers[name]), name
    assert network.training
    trainer.train_step(images, labels)
    assert [(len(rows), training) for rows, training in seen] == [
        (24, False),
        (24, False),
        (24, False),
        (12, True),
    ]
    assert torch.equal(seen[-1][0], images[expected])


def test_neighbours_are_nearer_than_random_negatives():
    trainer = loop.Trainer(tiny_config(**(HARD | {"candidates": 8}), augment=False), ALONE)
    nearest, anyone = [], []
    for images, labels in trainer.batches():
        chosen, chosen_labels = trainer.with_neighbours(images, labels)
        with torch.no_grad():
            model = trainer.model.eval()
            for rows, classes, found in (
                (chosen, chosen_labels, nearest),
                (images.view(3, 18, *images.shape[1:])[:, :4].flatten(0, 1),
                 labels.view(3, 18)[:, :4].flatten(), anyone),
            ):  # fmt: skip
                distances = torch.cdist(model(rows), model(rows))
                found.append(float(distances[classes[:, None] != classes].mean()))
    assert np.mean(nearest) < 0.95 * np.mean(anyone)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({}, "ClassBalancedSampler"), ({"sampler": "pairs"}, "PairSampler"), (HARD, "HardN")],
)
def test_the_sampler_is_that_of_the_settings(changes, kind):
    trainer = loop.Trainer(tiny_config(seed=3, **changes), ALONE)
    assert type(trainer.sampler).__name__.startswith(kind)
    assert (trainer.sampler.batch_size, trainer.sampler.seed) == (12, 3)
    assert getattr(trainer.sampler, "candidates", 3) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_are_taken_as_a_network_gives_them(dtype):
    places = torch.tensor([0.0, 1.0, 5.0, 0.25, 9.0, -3.0, 6.0, 7.0, 0.875, 5.5, 2.0, 6.625])
    labels = torch.tensor([1, 1, 2, 1, 3, 4, 2, 2, 3, 2, 5, 1])
    rows = hard_neighbours(places[:, None].to(dtype).requires_grad_(), labels, 6)
    assert rows.tolist() == [0, 1, 8, 10, 6, 7, 11, 4]
