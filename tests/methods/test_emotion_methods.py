"""ECWA, WSEIP, MSRCA, CGLF-Net and FAME-ViL's adapters, compared with loops and limiting cases."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import load_backbone
from intclip.backbones.base import Features
from intclip.labels import load_taxonomy
from intclip.losses import binary_cross_entropy_with_logits
from intclip.methods.base import Method, Output
from intclip.methods.ecwa.model import polarity_distance
from intclip.methods.fame_vil.model import BottleneckAdapter, CrossAttentionAdapter
from intclip.methods.feature_pyramid import FeaturePyramid
from intclip.methods.registry import build_method
from intclip.methods.stage_maps import stage_maps
from intclip.methods.wseip.model import pseudo_intensity


def built(backbone: TinyBackbone, name: str, exclusive: bool = False, **options: object) -> Method:
    torch.manual_seed(1)
    taxonomy = replace(tiny_taxonomy(), exclusive=exclusive)
    return build_method(name, backbone, taxonomy, options).eval()


def photos(backbone: TinyBackbone, method: Method, count: int = 4) -> Features:
    return backbone.features(torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(0)), method.needs)


def test_emotions_of_the_other_polarity_are_far() -> None:
    taxonomy = load_taxonomy("mikels8")
    distance = polarity_distance(taxonomy)
    row = distance[taxonomy.names.index("awe")]
    assert [name for name, far in zip(taxonomy.names, row.tolist(), strict=True) if far] == [
        "anger",
        "disgust",
        "fear",
        "sadness",
    ]
    assert torch.equal(distance, distance.T)


def test_ecwa_of_exclusive_labels_equals_a_loop(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "ecwa", exclusive=True, confusion=0.5, polarity=2.0, loss={"reduction": "batch"})
    generator = torch.Generator().manual_seed(0)
    method.confusion.copy_(torch.rand(5, 5, generator=generator))
    logits, label = torch.randn(3, 5, generator=generator), [0, 3, 1]
    p = logits.softmax(dim=1)
    terms = []
    for photo, k in enumerate(label):
        far = sum(p[photo, j] for j in range(5) if j % 2 != k % 2)  # labels alternate between two groups
        terms.append(-p[photo, k].log() * (1 + 0.5 * (1 - method.confusion[k, k]) + 2 * far))
    targets = F.one_hot(torch.tensor(label), 5).float()
    (found,) = method.loss(Output(logits), targets).values()
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_ecwa_of_several_labels_equals_a_loop(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "ecwa", confusion=0.5, polarity=2.0, loss={"reduction": "sum"})
    generator = torch.Generator().manual_seed(0)
    method.confusion.copy_(torch.rand(5, 5, generator=generator))
    logits = torch.randn(2, 5, generator=generator)
    targets = torch.tensor([[1.0, 0, 1, 0, float("nan")], [0, 0, 0, 0, 0]])
    expected = torch.zeros(())
    for photo in range(2):
        for k in range(5):
            y = float(targets[photo, k])
            if y != y:
                continue
            term = F.binary_cross_entropy_with_logits(logits[photo, k], torch.tensor(y))
            opposite = any(targets[photo, j] == 1 and j % 2 != k % 2 for j in range(5))
            expected += term * (1 + (0.5 * (1 - method.confusion[k, k]) if y else 2.0 * opposite))
    (found,) = method.loss(Output(logits), targets).values()
    torch.testing.assert_close(found, expected)


def test_ecwa_without_weights_is_a_plain_cross_entropy_and_counts_confusion(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "ecwa", confusion=0, polarity=0, momentum=0.5)
    features = photos(tiny_backbone, method)
    targets = torch.tensor([[1.0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    (found,) = method.training_loss([features], targets).values()
    logits = method(features).logits
    torch.testing.assert_close(found, binary_cross_entropy_with_logits(logits, targets, reduction="batch"))
    p = logits.detach().sigmoid()
    torch.testing.assert_close(method.confusion[0], 0.5 * torch.eye(5)[0] + 0.5 * p[:2].mean(dim=0))
    torch.testing.assert_close(method.confusion[4], torch.eye(5)[4])  # it does not occur


def test_a_pseudo_intensity_is_the_labels_activation_stretched_to_one() -> None:
    activation = torch.tensor([[[[0.0, 2.0], [4.0, 1.0]], [[9.0, 9.0], [9.0, 9.0]]]])
    expected = torch.tensor([[[0.0, 0.5], [1.0, 0.25]]])
    torch.testing.assert_close(pseudo_intensity(activation, torch.tensor([[1.0, 0.0]])), expected)
    torch.testing.assert_close(pseudo_intensity(activation, torch.tensor([[1.0, float("nan")]])), expected)
    # For two labels, the mean; a constant map has intensity 0.
    torch.testing.assert_close(pseudo_intensity(activation, torch.ones(1, 2)), expected)
    assert not pseudo_intensity(activation, torch.tensor([[0.0, 1.0]])).any()


def test_wseip_weighs_regions_by_their_intensity_and_learns_it(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "wseip", dim=8)
    features = photos(tiny_backbone, method)
    output = method(features)
    with torch.no_grad():
        visual = tiny_backbone.deep(features["trunk"])
    intensity = output.extras["intensity"]
    mean = visual.mean(dim=(2, 3))
    weighted = torch.stack(
        [
            sum(intensity[b, i, j] * visual[b, :, i, j] for i in range(3) for j in range(3)) / intensity[b].sum()
            for b in range(4)
        ]
    )
    torch.testing.assert_close(output.logits, method.second(torch.cat([mean, weighted], dim=1)))
    torch.testing.assert_close(output.extras["first"], method.first(mean))
    targets = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    terms = method.loss(output, targets)
    pseudo = pseudo_intensity(output.extras["activation"], targets)
    squares = (intensity - pseudo).square().mean(dim=(1, 2))
    torch.testing.assert_close(terms["intensity"], (squares[0] + squares[1] + squares[3]) / 4)
    optimizer = torch.optim.Adam(method.learnable_parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        now = method.loss(method(features), targets)
        torch.stack(list(now.values())).sum().backward()
        optimizer.step()
    assert now["intensity"] < 0.5 * terms["intensity"]


def test_a_pyramid_adds_coarse_levels_to_finer_ones() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid([2, 3], 4)
    fine, coarse = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 2, 2)
    found = pyramid({3: fine, 4: coarse})
    top = pyramid.lateral[1](coarse)
    repeated = top.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(found[0], pyramid.smooth[0](pyramid.lateral[0](fine) + repeated))
    torch.testing.assert_close(found[1], pyramid.smooth[1](top))


def test_msrca_relates_the_regions_of_all_levels_and_marks_their_level(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "msrca", dim=8, heads=2, regions=[3, 2, 1])
    features = photos(tiny_backbone, method)
    seen = []
    method.relate[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method(features)
    assert seen[0].shape == (4, 9 + 4 + 1, 8)
    with torch.no_grad():
        levels = method.pyramid(stage_maps(tiny_backbone, features, method._sources, method.branch))
    torch.testing.assert_close(seen[0][:, 13], levels[2].mean(dim=(2, 3)) + method.level[2])


def test_cglf_net_stacks_the_class_token_and_the_mean_of_every_scale(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "cglf_net", dim=8, heads=2, kernels=[1, 3])
    features = photos(tiny_backbone, method)
    with torch.no_grad():
        visual = method.project(tiny_backbone.deep(features["trunk"]))
        tokens = torch.cat([method.whole.expand(4, 1, 8), visual.flatten(2).transpose(1, 2)], dim=1)
        for layer in method.layers:
            tokens = layer(tokens, method.positions)
        local = [torch.relu(F.conv2d(visual, s.weight, s.bias, padding=s.weight.shape[2] // 2)) for s in method.scales]
        stacked = torch.cat([tokens[:, 0], *(part.mean(dim=(2, 3)) for part in local)], dim=1)
        torch.testing.assert_close(method(features).logits, method.head(stacked))


def test_adapters_add_nothing_at_first(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "fame_vil", bottleneck=4)
    features = photos(tiny_backbone, method)
    pooled = tiny_backbone.head.pooled(tiny_backbone.deep(features["trunk"]))
    torch.testing.assert_close(method(features).logits, method.head(pooled))
    trained = {name.split(".")[0] for name, p in method.named_parameters() if p.requires_grad}
    assert trained == {"adapters", "cross", "head"}


def test_adapted_features_stay_in_the_range_that_the_head_takes() -> None:
    """The head of `lite` takes the root of features, which its last block keeps non-negative."""
    backbone = load_backbone("lite")
    torch.manual_seed(0)
    method = build_method("fame_vil", backbone, tiny_taxonomy(), {"bottleneck": 4}).eval()
    with torch.no_grad():
        for parameter in method.learnable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        features = backbone.features(torch.randn(2, 3, 224, 224), method.needs)
        output = method(features, maps=True)
    assert output.logits.isfinite().all()
    assert output.maps["fused"].isfinite().all()


@pytest.mark.parametrize("photo", [0, 1])
def test_adapters_equal_their_equations(photo: int) -> None:
    torch.manual_seed(0)
    tokens, sentences = torch.randn(2, 3, 6), torch.randn(5, 4)
    adapter, cross = BottleneckAdapter(6, 2), CrossAttentionAdapter(6, 4, 2)
    with torch.no_grad():
        for parameter in (*adapter.parameters(), *cross.parameters()):
            parameter.copy_(torch.randn_like(parameter))
    for n in range(3):
        x = F.layer_norm(tokens[photo, n], (6,), adapter.norm.weight, adapter.norm.bias)
        expected = adapter.scale * adapter.up(torch.relu(adapter.down(x)))
        torch.testing.assert_close(adapter(tokens)[photo, n], expected)
        query = cross.query(F.layer_norm(tokens[photo, n], (6,), cross.norm.weight, cross.norm.bias))
        weights = torch.stack([query @ cross.key(t) / 2**0.5 for t in sentences]).softmax(dim=0)
        read = sum(w * cross.value(t) for w, t in zip(weights, sentences, strict=True))
        expected = torch.tanh(cross.gate) * cross.out(read)
        torch.testing.assert_close(cross(tokens, sentences)[photo, n], expected)
