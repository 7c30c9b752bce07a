"""The query decoder, compared with torch's layers and closed forms; the choice of a visual map."""

import math

import pytest
import torch
from torch import Tensor, nn

from fakes import TinyBackbone
from intclip.errors import RecipeError
from intclip.methods.query_decoder import (
    DecoderLayer,
    DecoderOptions,
    EncoderLayer,
    GroupLinear,
    QueryDecoder,
    sine_positions,
)
from intclip.methods.region_maps import attention_map
from intclip.methods.visual_map import MapOptions, VisualMap, feature_shapes


def torch_names(layer: EncoderLayer | DecoderLayer) -> dict[str, Tensor]:
    """Return our weights with the names of torch's transformer layers."""
    decoder = isinstance(layer, DecoderLayer)
    names = {"attention": "multihead_attn", "norm": "norm2", "feedforward.norm": "norm3"}
    names |= {"self_attention": "self_attn", "self_norm": "norm1"}
    if not decoder:
        names = {"attention": "self_attn", "norm": "norm1", "feedforward.norm": "norm2"}
    names |= {"feedforward.layers.0": "linear1", "feedforward.layers.3": "linear2"}
    state = {}
    for key, value in layer.state_dict().items():
        prefix = max((name for name in names if key.startswith(name + ".")), key=len)
        state[names[prefix] + key.removeprefix(prefix)] = value
    return state


def shaken(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return layer.eval()


def test_layers_equal_torchs_where_nothing_is_placed() -> None:
    torch.manual_seed(0)
    x, hidden = torch.randn(2, 6, 8), torch.randn(2, 3, 8)
    encoder = shaken(EncoderLayer(8, 2, 16, 0.1))
    plain = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    plain.load_state_dict(torch_names(encoder))
    torch.testing.assert_close(encoder(x, torch.zeros(6, 8)), plain(x))
    decoder = shaken(DecoderLayer(8, 2, 16, 0.1, self_attention=True))
    theirs = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval()
    theirs.load_state_dict(torch_names(decoder))
    got, _ = decoder(hidden, torch.zeros(3, 8), x, torch.zeros(6, 8))
    torch.testing.assert_close(got, theirs(hidden, x))


def test_positions_and_label_embeddings_take_part_in_the_comparison_only() -> None:
    torch.manual_seed(0)
    layer = shaken(DecoderLayer(8, 2, 16, 0.0))
    hidden, queries, memory, positions = (torch.randn(*s) for s in ((2, 3, 8), (3, 8), (2, 6, 8), (6, 8)))
    read, _ = nn.functional.multi_head_attention_forward(
        (hidden + queries).transpose(0, 1), (memory + positions).transpose(0, 1), memory.transpose(0, 1), 8, 2,
        layer.attention.in_proj_weight, layer.attention.in_proj_bias, None, None, False, 0.0,
        layer.attention.out_proj.weight, layer.attention.out_proj.bias, need_weights=False,
    )  # fmt: skip
    expected = layer.feedforward(layer.norm(hidden + read.transpose(0, 1)))
    torch.testing.assert_close(layer(hidden, queries, memory, positions)[0], expected)


def test_regions_are_placed_where_they_are_compared_and_not_where_they_are_read() -> None:
    torch.manual_seed(0)
    layer = shaken(EncoderLayer(8, 2, 16, 0.1))
    x, positions = torch.randn(2, 6, 8), torch.randn(6, 8)
    placed = x + positions
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(layer.attention.state_dict())
    read, _ = theirs(placed, placed, x)
    torch.testing.assert_close(layer(x, positions), layer.feedforward(layer.norm(x + read)))


def test_weights_start_from_xaviers_uniform_distribution() -> None:
    torch.manual_seed(0)
    decoder = QueryDecoder(32, DecoderOptions(feedforward=64))
    for name, weight in (*decoder.encoder.named_parameters(), *decoder.layers.named_parameters()):
        if weight.ndim == 2:
            bound = math.sqrt(6 / sum(weight.shape))
            assert 0.95 * bound < weight.abs().max() <= bound, name


def test_sine_positions_equal_their_formula() -> None:
    got = sine_positions(3, 2, 8)
    for row in range(3):
        for column in range(2):
            expected = []
            for place, count in ((row, 3), (column, 2)):
                angle = 2 * math.pi * (place + 1) / count
                for pair in range(2):
                    frequency = 10_000 ** (2 * pair / 4)
                    expected += [math.sin(angle / frequency), math.cos(angle / frequency)]
            torch.testing.assert_close(got[row * 2 + column], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_group_linear_equals_a_loop_and_starts_in_its_bounds() -> None:
    torch.manual_seed(0)
    head, hidden = GroupLinear(5, 16), torch.randn(3, 5, 16)
    loop = torch.stack([hidden[:, k] @ head.weight[k] + head.bias[k] for k in range(5)], dim=1)
    torch.testing.assert_close(head(hidden), loop)
    assert head.weight.abs().max() <= 0.25
    assert head.weight.abs().max() > 0.2


@pytest.mark.parametrize("self_attention", [False, True])
def test_labels_do_not_see_each_other_without_self_attention(self_attention: bool) -> None:
    torch.manual_seed(0)
    options = DecoderOptions(dim=8, heads=2, self_attention=self_attention)
    decoder = QueryDecoder(6, options).eval()
    features, queries = torch.randn(2, 6, 3, 2), torch.randn(4, 8)
    states, shares = decoder(features, queries, attention=True)
    assert states.shape == (2, 4, 8)
    assert shares.shape == (2, 4, 3, 2)
    torch.testing.assert_close(shares.sum(dim=(2, 3)), torch.ones(2, 4))
    torch.testing.assert_close(attention_map(shares).mean(dim=(2, 3)), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(decoder(features, queries)[0], states)
    other = torch.cat([queries[:1], torch.randn(3, 8)])
    changed = not torch.allclose(decoder(features, other)[0][:, 0], states[:, 0])
    assert changed == self_attention


def test_without_positions_and_encoder_regions_are_a_set() -> None:
    torch.manual_seed(0)
    features, queries = torch.randn(2, 8, 3, 3), torch.randn(4, 8)
    shuffled = features.flatten(2)[..., torch.randperm(9)].view_as(features)
    for positions in ("none", "sine"):
        decoder = QueryDecoder(8, DecoderOptions(positions=positions)).eval()
        assert isinstance(decoder.project, nn.Identity)
        same = torch.allclose(decoder(features, queries)[0], decoder(shuffled, queries)[0], atol=1e-5)
        assert same == (positions == "none")


def test_channels_that_do_not_fit_are_projected_to_the_next_width_that_does() -> None:
    decoder = QueryDecoder(7, DecoderOptions(heads=3))
    assert decoder.dim == 12
    assert decoder(torch.randn(2, 7, 3, 3), torch.randn(5, 12))[0].shape == (2, 5, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dim": 9, "positions": "none"}, "heads 4.* 9"), ({"dim": 6, "heads": 2}, r"\b4\b")],
)
def test_a_width_that_does_not_fit_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        QueryDecoder(8, DecoderOptions.model_validate(options))


@pytest.mark.parametrize("train", ["none", "deep"])
@pytest.mark.parametrize("space", ["own", "joint"])
def test_a_visual_map_starts_as_the_frozen_one(tiny_backbone: TinyBackbone, train: str, space: str) -> None:
    module = VisualMap(tiny_backbone, MapOptions(train=train, space=space))
    pixels = torch.randn(2, 3, 24, 24)
    got = module(tiny_backbone, tiny_backbone.features(pixels, module.needs))
    deep = tiny_backbone.deep(tiny_backbone.trunk(pixels))
    expected = tiny_backbone.head.regions(deep) if space == "joint" else deep
    if module.needs == ("stage4",):  # this backbone's last stage is coarser than its deep layers
        expected = expected.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(got, expected)
    assert got.shape[1] == module.channels
    assert got.requires_grad == (train == "deep")
    assert feature_shapes(tiny_backbone, module.needs) == {
        name: tuple(value.shape[1:]) for name, value in tiny_backbone.features(pixels, module.needs).items()
    }
