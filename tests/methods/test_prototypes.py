"""Prototypes: allocation, clustering, online updates and collapse, compared with closed forms and loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_blobs

from intclip.methods.prototypes import USAGE_DECAY, PrototypePool, Update, allocate, kmeans, perplexity


def pool(update: Update = "momentum", momentum: float = 0.9, temperature: float = 0.2) -> PrototypePool:
    torch.manual_seed(0)
    return PrototypePool(7, 5, temperature=temperature, momentum=momentum, update=update)


def test_shares_follow_the_inverse_of_abundance() -> None:
    assert allocate([100, 50, 25], 3 + 70).tolist() == [11, 21, 41]  # one each, then 10 : 20 : 40
    assert allocate([100, 50, 25], 12, power=0).tolist() == [4, 4, 4]
    assert allocate([10, 0, 10], 5).tolist() == [3, 0, 2]
    assert allocate([1e-6, 1e9], 300).sum() == 300


@pytest.mark.parametrize("seed", range(5))
def test_shares_use_every_prototype_and_favour_the_rare(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(1, 500, 28)
    for total in (28, 97, 256):
        given = allocate(counts, total)
        assert given.sum() == total
        assert given.min() >= 1
        ordered = given[np.argsort(counts)]
        assert (np.diff(ordered) <= 1).all()  # remainders may add one to a class
        per_sample = ordered / np.sort(counts)
        assert per_sample[0] == per_sample.max()


@pytest.mark.parametrize("counts", [[0, 0], [1, 2, 3]])
def test_too_few_prototypes_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="2 prototypes"):
        allocate(counts, 2)


def test_kmeans_finds_blobs_and_repeats_scarce_points() -> None:
    points, _, centres = make_blobs(300, 4, centers=3, cluster_std=0.1, random_state=0, return_centers=True)
    found = kmeans(points.astype(np.float32), 3)
    distances = np.linalg.norm(found[:, None] - centres[None], axis=2)
    assert distances.min(axis=0).max() < 0.1
    assert sorted(distances.argmin(axis=1).tolist()) == [0, 1, 2]
    two = points[:2].astype(np.float32)
    np.testing.assert_array_equal(kmeans(two, 5), two[[0, 1, 0, 1, 0]])


def test_perplexity_counts_what_is_used() -> None:
    assert perplexity(torch.ones(12)) == pytest.approx(12)
    assert perplexity(torch.eye(12)[3]) == pytest.approx(1)
    assert perplexity(torch.tensor([2.0, 2.0, 0.0])) == pytest.approx(2)
    assert perplexity(torch.tensor([1.0, 3.0])) == pytest.approx(0.25**-0.25 * 0.75**-0.75)
    assert perplexity(torch.zeros(3)) == 0


def test_composition_equals_a_loop_and_its_limits() -> None:
    module = pool().eval()
    features = F.normalize(torch.randn(2, 3, 5), dim=2)
    got = module(features)
    for b in range(2):
        for n in range(3):
            cosines = [F.cosine_similarity(features[b, n], p, dim=0) / 0.2 for p in module.prototypes]
            weights = torch.stack(cosines).exp()
            expected = (weights / weights.sum())[:, None] * module.prototypes
            torch.testing.assert_close(got[b, n], expected.sum(dim=0))
    nearest = module.similarities(features).argmax(dim=2)
    sharp = pool(temperature=1e-4).eval()
    torch.testing.assert_close(sharp(features), sharp.prototypes[nearest], atol=1e-4, rtol=0)
    flat = pool(temperature=1e4).eval()
    torch.testing.assert_close(flat(features), flat.prototypes.mean(0).expand(2, 3, 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99999, 1.0])
def test_a_step_is_equation_5(momentum: float) -> None:
    module = pool(momentum=momentum).train()
    features = F.normalize(torch.randn(4, 6, 5), dim=2)
    before, flat = module.prototypes.clone(), features.flatten(0, 1)
    nearest = module.similarities(flat).argmax(dim=1)
    module(features)
    torch.testing.assert_close(module.prototypes, before, rtol=0, atol=0)
    module.step()
    for j in range(7):
        mine = flat[nearest == j]
        expected = momentum * before[j] + (1 - momentum) * mine.mean(dim=0) if len(mine) else before[j]
        torch.testing.assert_close(module.prototypes[j], expected)
    shares = torch.bincount(nearest, minlength=7) / len(flat)
    torch.testing.assert_close(module.usage, USAGE_DECAY / 7 + (1 - USAGE_DECAY) * shares)
    after = module.prototypes.clone()
    module.step()  # no features since
    torch.testing.assert_close(module.prototypes, after, rtol=0, atol=0)


def test_pieces_of_a_batch_make_one_step() -> None:
    features = F.normalize(torch.randn(6, 5), dim=1)
    whole, parts = pool().train(), pool().train()
    whole(features)
    parts(features[:2])
    parts(features[2:])
    whole.step()
    parts.step()
    torch.testing.assert_close(parts.prototypes, whole.prototypes)
    torch.testing.assert_close(parts.usage, whole.usage)


def test_only_momentum_moves_and_only_gradient_learns() -> None:
    features = F.normalize(torch.randn(6, 5), dim=1)
    for update in ("momentum", "gradient", "fixed"):
        module = pool(update).train()
        before = module.prototypes.detach().clone()
        module(features)
        module.step()
        assert torch.equal(module.prototypes, before) == (update != "momentum")
        assert module.prototypes.requires_grad == (update == "gradient")


def test_collapse_is_seen() -> None:
    module = pool(momentum=1.0).train()
    assert module.perplexity() == pytest.approx(7)
    one = F.normalize(torch.randn(1, 5), dim=1)
    for _ in range(1000):
        module(one)
        module.step()
    assert module.perplexity() < 1.01
