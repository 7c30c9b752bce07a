"""IntCLIP: parameter counts of the paper, one trunk, initial output in closed form, gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import random_backbone
from intclip.backbones.base import Backbone, Features
from intclip.labels import load_taxonomy
from intclip.methods.intclip import SightAssistedAggregation
from intclip.methods.intclip.model import IntCLIP, IntclipOptions
from intclip.methods.region_pooling import PoolingOptions, RegionPooling
from intclip.methods.registry import build_method

DESIGNS = list(itertools.product(["single", "dual"], ["none", "semantic", "all"]))
NEEDS = {
    ("single", "none"): {"regions"},
    ("single", "semantic"): {"trunk"},
    ("single", "all"): {"pixels"},
    ("dual", "none"): {"regions"},
    ("dual", "semantic"): {"trunk", "regions"},
    ("dual", "all"): {"pixels", "regions"},
}


def tiny(backbone: Backbone, **options: object) -> IntCLIP:
    torch.manual_seed(0)
    return IntCLIP(backbone, tiny_taxonomy(), IntclipOptions.model_validate({"context_length": 3, **options}))


def photos(backbone: Backbone, method: IntCLIP, images: int = 3, extra: tuple[str, ...] = ()) -> Features:
    generator = torch.Generator().manual_seed(0)
    size = backbone.image_size
    return backbone.features(torch.randn(images, 3, size, size, generator=generator), (*method.needs, *extra))


def learnable(method: nn.Module) -> int:
    return sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)


@pytest.fixture(scope="module")
def rn101() -> Backbone:
    return random_backbone("RN101")


def test_rn101_has_the_parameters_of_the_paper(rn101: Backbone) -> None:
    method = IntCLIP(rn101, load_taxonomy("intentonomy"), IntclipOptions())
    sizes = {group.name: sum(p.numel() for p in group.parameters) for group in method.parameter_groups()}
    assert sizes == {"prompts": 16 * 512 * 2 * 28, "deep": 14_964_736, "aggregation": 328_321}
    assert learnable(method) == 15_751_809  # the paper: 15.7 M
    assert method.needs == ("trunk", "regions")


def test_vit_b32_has_twenty_two_million() -> None:
    method = IntCLIP(random_backbone("ViT-B/32"), load_taxonomy("intentonomy"), IntclipOptions())
    # Three blocks of 7,087,872, aggregation, contexts; the paper has 22.6 M, without explaining the rest.
    assert learnable(method) == 3 * 7_087_872 + 328_321 + 458_752 == 22_050_689


@pytest.mark.parametrize(("branches", "train"), DESIGNS)
def test_the_encoder_designs_of_table_4(branches: str, train: str, tiny_backbone: TinyBackbone) -> None:
    method = tiny(tiny_backbone, branches=branches, train=train)
    assert set(method.needs) == NEEDS[branches, train]
    names = {group.name for group in method.parameter_groups()}
    expected = (
        {"prompts"} | ({"deep"} if train != "none" else set()) | ({"aggregation"} if branches == "dual" else set())
    )
    assert names == expected
    # Untrained copies and α = 0: every design initially equals the frozen single branch.
    frozen = tiny(tiny_backbone, branches="single", train="none")
    frozen.prompts.load_state_dict(method.prompts.state_dict())
    features = photos(tiny_backbone, method, extra=("regions",))
    torch.testing.assert_close(method.eval()(features).logits, frozen.eval()(features).logits)


@pytest.mark.parametrize("train", ["none", "semantic"])
@pytest.mark.parametrize("branches", ["single", "dual"])
def test_the_trunk_runs_once_per_image(branches: str, train: str, tiny_backbone: TinyBackbone) -> None:
    method = tiny(tiny_backbone, branches=branches, train=train)
    seen: list[int] = []
    tiny_backbone.trunk.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    method.train()(photos(tiny_backbone, method))
    method.eval()(photos(tiny_backbone, method), maps=True)
    assert seen == [3, 3]


@pytest.mark.parametrize("variant", ["paper", "released", "cross_attention", "symmetric", "sum", "concat_mlp", "sight"])
def test_the_logits_are_those_of_the_parts(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = tiny(tiny_backbone, aggregation=variant).double().eval()
    assert method.semantic is not None
    assert method.aggregation is not None
    with torch.no_grad():
        for parameter in [*method.semantic.parameters(), *method.aggregation.parameters()]:
            parameter += 0.1 * torch.randn_like(parameter)
    features = {name: value.double() for name, value in photos(TinyBackbone(), method).items()}
    output = method(features, maps=True)
    text = method.prompts.encode(tiny_backbone.text)
    semantic = tiny_backbone.head.regions(method.semantic(features["trunk"]))
    fused = SightAssistedAggregation(8, variant=variant).double()
    fused.load_state_dict(method.aggregation.state_dict())
    pooling = RegionPooling(PoolingOptions(), 5)
    joined = fused(semantic, features["regions"])
    torch.testing.assert_close(output.logits, pooling(joined, text))
    torch.testing.assert_close(output.maps["fused"], pooling.map(joined, text))
    torch.testing.assert_close(output.maps["sight"], pooling.map(features["regions"], text))
    torch.testing.assert_close(output.maps["semantic"], pooling.map(semantic, text))


def gradients(method: IntCLIP, features: Features, targets: Tensor) -> set[str]:
    """Return the names of parameters with a non-zero gradient."""
    method.zero_grad()
    sum(method.loss(method(features), targets).values()).backward()
    return {
        name for name, parameter in method.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }


@pytest.mark.parametrize("variant", ["paper", "released", "cross_attention"])
def test_what_learns_before_and_after_alpha_has_moved(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = tiny(tiny_backbone, aggregation=variant).train()
    features = photos(tiny_backbone, method, images=6)
    targets = (torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    everything = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    attention = {name for name in everything if name.startswith("aggregation.attention")}
    deep = {name for name in everything if name.startswith("semantic.")}
    first = gradients(method, features, targets)
    # At α = 0 only α has a gradient. In `paper` the semantic branch acts only through α.
    silent = attention - {"aggregation.attention.alpha"} | (deep if variant == "paper" else set())
    assert first == everything - silent
    optimizer = torch.optim.SGD(method.learnable_parameters(), lr=0.01)
    optimizer.step()
    # The key bias shifts all keys' scores equally, to which softmax is invariant.
    assert gradients(method, features, targets) >= everything - {"aggregation.attention.key.bias"}


def test_the_paper_variant_feeds_its_semantic_branch_through_a_needle(tiny_backbone: TinyBackbone) -> None:
    """After one step its gradient is a small fraction of that in the other variants."""
    norms = {}
    for variant in ("paper", "released"):
        method = tiny(tiny_backbone, aggregation=variant).train()
        features = photos(tiny_backbone, method, images=6)
        targets = (torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
        optimizer = torch.optim.SGD(method.learnable_parameters(), lr=0.002)
        gradients(method, features, targets)
        optimizer.step()
        gradients(method, features, targets)
        assert method.semantic is not None
        norms[variant] = sum(p.grad.square().sum().item() for p in method.semantic.parameters() if p.grad is not None)
    assert norms["paper"] < 1e-3 * norms["released"]


def test_a_training_run_lowers_the_loss_and_moves_alpha(tiny_backbone: TinyBackbone) -> None:
    method = tiny(tiny_backbone, sight_loss=0.5, pooling={"learn_scales": True, "bias": True}).train()
    features = photos(tiny_backbone, method, images=8)
    targets = (torch.rand(8, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    optimizer = torch.optim.Adam(method.learnable_parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        terms = method.loss(method(features), targets)
        assert set(terms) == {"classification", "sight"}
        sum(terms.values()).backward()
        optimizer.step()
        losses.append(terms["classification"].item())
    assert losses[-1] < 0.5 * losses[0]
    assert method.aggregation is not None
    assert method.aggregation.attention is not None
    assert method.aggregation.attention.alpha.abs() > 0.01


def test_sight_loss_is_the_loss_of_the_sight_map_alone(tiny_backbone: TinyBackbone) -> None:
    method = tiny(tiny_backbone, sight_loss=0.3, branches="single").train()
    assert set(method.needs) == {"trunk", "regions"}
    features = photos(tiny_backbone, method)
    targets = torch.ones(3, 5)
    terms = method.loss(method(features), targets)
    text = method.prompts.encode(tiny_backbone.text)
    expected = method.options.loss(method.pooling(features["regions"], text), targets)
    torch.testing.assert_close(terms["sight"], 0.3 * expected)


def test_learning_rates_of_the_groups(tiny_backbone: TinyBackbone) -> None:
    method = tiny(tiny_backbone, lr={"deep": 0.3, "aggregation": 0.2}, pooling={"bias": True})
    rates = {group.name: (group.lr_multiplier, group.weight_decay_multiplier) for group in method.parameter_groups()}
    assert rates == {"prompts": (1, 1), "deep": (0.3, 1), "aggregation": (0.2, 1), "pooling": (1, 0)}
    shared = tiny(tiny_backbone, class_specific=False)
    assert shared.prompts.context.shape[1] == 1


def test_the_backbone_is_neither_trained_nor_stored(rn101: Backbone) -> None:
    method = build_method("intclip", rn101, load_taxonomy("intentonomy"), {"aggregation": "symmetric"})
    method.train()
    assert not any(module.training for module in rn101.modules())
    assert not any(parameter.requires_grad for parameter in rn101.parameters())
    assert sum(tensor.numel() for tensor in method.own_state().values()) < 17_000_000


def test_the_first_region_counts_once_more_as_it_was_before_the_aggregation(tiny_backbone: TinyBackbone) -> None:
    method = tiny(tiny_backbone, aggregation="released", first_region=True).eval()
    with torch.no_grad():
        for parameter in method.learnable_parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    features = photos(tiny_backbone, method)
    semantic = tiny_backbone.head.regions(method.semantic(features["trunk"]))
    fused = method.aggregation(semantic, features["regions"])
    regions = torch.cat([fused.flatten(2), semantic.flatten(2)[:, :, :1]], dim=2)
    assert (fused.flatten(2)[:, :, 0] - semantic.flatten(2)[:, :, 0]).abs().max() > 0.1
    text = F.normalize(method.prompts(tiny_backbone.text), dim=2)
    s = 20 * torch.einsum("bdn,hkd->bhkn", F.normalize(regions, dim=1), text)
    logits = 5 * (s[:, 1].softmax(dim=2) * (s[:, 1] - s[:, 0])).sum(dim=2)
    torch.testing.assert_close(method(features).logits, logits, atol=1e-4, rtol=1e-4)


def test_contexts_start_with_a_deviation_of_a_fiftieth(tiny_backbone: TinyBackbone) -> None:
    context = tiny(tiny_backbone, context_length=8).prompts.context.detach()
    assert context.shape == (2, 5, 8, 6)
    assert context.std().item() == pytest.approx(0.02, rel=0.15)
