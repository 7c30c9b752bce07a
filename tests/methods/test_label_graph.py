"""The label graph, compared with counting loops, closed forms and limiting cases."""

import numpy as np
import pytest
import torch
from torch import nn

from fakes import TinyBackbone, tiny_taxonomy
from intclip.methods.label_graph import (
    GraphOptions,
    LabelGCN,
    cooccurrence_adjacency,
    count_labels,
    label_adjacency,
    label_embeddings,
    normalize_adjacency,
    text_adjacency,
)


def test_counts_equal_a_loop_and_leave_unknown_labels_out() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((40, 4)) < 0.5).astype(np.float32)
    targets[rng.random((40, 4)) < 0.2] = np.nan
    batches = [torch.from_numpy(part) for part in np.split(targets, [15, 16])]
    counts = count_labels(batches, 4)
    conditional = counts.conditional()
    for i in range(4):
        assert counts.counts[i] == np.nansum(targets[:, i])
        assert float(counts.frequencies()[i]) == pytest.approx(np.nanmean(targets[:, i]))
        for j in range(4):
            assert counts.photos[i, j] == (~np.isnan(targets[:, [i, j]])).all(axis=1).sum()
            rows = [row for row in targets if row[i] == 1 and not np.isnan(row[j])]
            expected = 1.0 if i == j else np.mean([row[j] for row in rows])
            assert float(conditional[i, j]) == pytest.approx(expected)


def test_votes_count_by_their_share_and_absent_labels_are_alone() -> None:
    counts = count_labels([torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0]])], 3)
    torch.testing.assert_close(
        counts.conditional(), torch.tensor([[1, 1 / 1.5, 0], [1 / 1.5, 1, 0], [0, 0, 1]], dtype=torch.float32)
    )


def test_cooccurrence_is_binarised_and_reweighted() -> None:
    conditional = torch.tensor([[1, 0.5, 0.4, 0.1], [0.2, 1, 0.0, 0.0], [0.6, 0.3, 1, 0.3], [0, 0, 0.1, 1]])
    got = cooccurrence_adjacency(conditional, threshold=0.3, neighbour_share=0.2)
    expected = torch.tensor(
        [[0.8, 0.1, 0.1, 0], [0, 1, 0, 0], [0.2 / 3, 0.2 / 3, 0.8, 0.2 / 3], [0, 0, 0, 1]], dtype=torch.float32
    )
    torch.testing.assert_close(got, expected)


def test_text_keeps_the_nearest_of_either_side() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(6, 9) + 5
    got = text_adjacency(embeddings, neighbours=2)
    unit = nn.functional.normalize(embeddings - embeddings.mean(dim=0), dim=1)
    cosines = unit @ unit.T
    for i in range(6):
        for j in range(6):
            close = [set(torch.argsort(-cosines[k])[1:3].tolist()) for k in (i, j)]
            kept = j in close[0] or i in close[1]
            expected = 1.0 if i == j else max(float(cosines[i, j]), 0.0) * kept
            assert float(got[i, j]) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(text_adjacency(embeddings[:1], neighbours=3), torch.ones(1, 1))


def test_normalised_adjacency_has_its_largest_eigenvalue_at_one() -> None:
    torch.manual_seed(0)
    adjacency = text_adjacency(torch.randn(8, 5), neighbours=3)
    got = normalize_adjacency(adjacency)
    torch.testing.assert_close(got, got.T)
    assert float(torch.linalg.eigvalsh(got).max()) == pytest.approx(1, abs=1e-5)
    root = adjacency.sum(dim=1).sqrt()
    torch.testing.assert_close(got * root[:, None] * root, adjacency)


def test_weights_choose_the_graph() -> None:
    torch.manual_seed(0)
    conditional, embeddings = torch.rand(5, 5).fill_diagonal_(1), torch.randn(5, 6)
    seen = label_adjacency(conditional, embeddings, GraphOptions(text=0))
    meant = label_adjacency(conditional, embeddings, GraphOptions(cooccurrence=0))
    both = label_adjacency(conditional, embeddings, GraphOptions(cooccurrence=1, text=3))
    torch.testing.assert_close(both, seen / 4 + 3 * meant / 4)
    none = label_adjacency(conditional, embeddings, GraphOptions(cooccurrence=0, text=0))
    torch.testing.assert_close(none, torch.eye(5))


def test_graph_convolution_equals_its_formula() -> None:
    torch.manual_seed(0)
    network, embeddings, adjacency = LabelGCN(6, 7, 3), torch.randn(5, 6), torch.rand(5, 5)
    first, second = network.layers
    hidden = nn.functional.leaky_relu(adjacency @ (embeddings @ first.weight.T) + first.bias, 0.2)
    # A row sum other than one would scale a bias added before the mixing; ours is added after it.
    torch.testing.assert_close(network(embeddings, adjacency), adjacency @ hidden @ second.weight.T + second.bias)
    alone = network(embeddings, torch.eye(5))
    torch.testing.assert_close(alone[2], network(embeddings[2:3], torch.eye(1))[0])


def test_label_embeddings_have_coordinates_of_size_one(tiny_backbone: TinyBackbone) -> None:
    got = label_embeddings(tiny_backbone.text, tiny_taxonomy(), "11-15")
    torch.testing.assert_close(got.square().mean(dim=1), torch.ones(5))
    assert not got.requires_grad
