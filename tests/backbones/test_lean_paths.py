"""Fast paths of the towers, compared with slow versions in values and gradients."""

from dataclasses import replace

import pytest
import torch
from seeded import SMALL_RESNET, SMALL_VIT
from torch.testing import assert_close

from intclip.backbones.clip import random_clip
from intclip.backbones.clip_text import best_cut
from intclip.backbones.transformer import Block, BlockSpec


def full_text(text, embeddings, lengths):
    """Every block at every position, padded to the context length, read at the end."""
    padded = torch.zeros(len(embeddings), text.context_length, text.width, dtype=embeddings.dtype)
    padded[:, : embeddings.shape[1]] = embeddings
    tokens = text.blocks(padded + text.positional_embedding)
    ends = tokens[torch.arange(len(tokens)), lengths - 1]
    return text.ln_final(ends) @ text.text_projection


@pytest.mark.parametrize("layers", [1, 3])
def test_text_read_at_the_end_equals_the_whole_sequence(layers):
    text = random_clip(replace(SMALL_VIT, text_layers=layers), seed=1).text.double()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 9, 5, 1])
    weights = torch.randn(4, text.embed_dim, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(4, 9, text.width, generator=generator, dtype=torch.float64)
    results = []
    for encode in (text.encode_embeddings, lambda *args: full_text(text, *args)):
        leaf = embeddings.clone().requires_grad_()
        features = encode(leaf, lengths)
        (features * weights).sum().backward()
        results.append((features.detach(), leaf.grad))
    assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_texts_cut_in_two_batches_equal_one():
    text = random_clip(SMALL_VIT, seed=1).text.double()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([14, 3, 4, 15, 2, 3])
    assert best_cut(sorted(lengths.tolist())) == 4
    weights = torch.randn(6, text.embed_dim, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(6, 16, text.width, generator=generator, dtype=torch.float64)
    results = []
    for encode in (text.encode_embeddings, text._encode):
        leaf = embeddings.clone().requires_grad_()
        features = encode(leaf, lengths)
        (features * weights).sum().backward()
        results.append((features.detach(), leaf.grad))
    assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("lengths", "cut"),
    [([5], 1), ([7, 7, 7], 3), ([2, 9], 1), ([19, 19, 20], 3), ([3, 3, 3, 10], 3), ([3, 9, 10, 10], 1)],
)
def test_best_cut(lengths, cut):
    assert best_cut(lengths) == cut
    padded = cut * lengths[cut - 1] + (len(lengths) - cut) * lengths[-1]
    for other in range(1, len(lengths)):
        assert padded <= 1.06 * (other * lengths[other - 1] + (len(lengths) - other) * lengths[-1])


@pytest.mark.parametrize("causal", [True, False])
def test_block_read_at_a_position_equals_forward(causal):
    torch.manual_seed(0)
    block = Block(BlockSpec(128, causal=causal)).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.randn(5, 7, 128, dtype=torch.float64)
    positions = torch.tensor([0, 6, 3, 3, 1])
    assert_close(block.read(tokens, positions), block(tokens)[torch.arange(5), positions], rtol=1e-10, atol=1e-12)


def two_projections(head, deep):
    tokens = deep.flatten(2).transpose(1, 2) + head.positional_embedding[1:]
    return head.c_proj(head.v_proj(tokens)).transpose(1, 2).unflatten(2, deep.shape[2:])


@pytest.mark.parametrize("photos", [1, 8])
def test_regions_in_one_projection_equal_two(photos):
    head = random_clip(SMALL_RESNET, seed=2).head.double()
    assert (photos * 9 > SMALL_RESNET.embed_dim) == (photos == 8)  # one photo takes the slow path
    results = []
    for function in (head.regions, lambda deep: two_projections(head, deep)):
        deep = torch.linspace(-1, 1, photos * 128 * 9, dtype=torch.float64).view(photos, 128, 3, 3).requires_grad_()
        regions = function(deep)
        regions.square().sum().backward()
        results.append((regions.detach(), deep.grad))
    assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_recorded_graph_projects_once():
    head = random_clip(SMALL_RESNET, seed=2).head.double()
    deep = torch.linspace(-1, 1, 128 * 9, dtype=torch.float64).view(1, 128, 3, 3)
    traced = torch.jit.trace_module(head, {"regions": (deep,)}, check_trace=False)
    assert_close(traced.regions(deep), two_projections(head, deep), rtol=1e-10, atol=1e-12)
    assert str(traced.regions.graph).count("aten::linear") == 1
    assert_close(traced.regions(deep.expand(3, -1, -1, -1)), two_projections(head, deep).expand(3, -1, -1, -1))
