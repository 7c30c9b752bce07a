"""Alternatives to the model's own maps match their papers."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.architecture import Architecture
from intclip.backbones.clip import random_clip
from intclip.errors import IntclipError
from intclip.evidence.kinds import KINDS, check_kind, maps_of_kind
from intclip.evidence.rollout import attention_flow
from intclip.evidence.views import join_views, photo_views
from intclip.methods.base import Method
from intclip.methods.registry import METHODS, build_method, method_options

LABEL = 2


def tiny(name: str, backbone=None, **options) -> Method:
    torch.manual_seed(0)
    if "context_length" in method_options(name).model_fields:
        options.setdefault("context_length", 2)
    method = build_method(name, backbone or TinyBackbone(), tiny_taxonomy(), options)
    with torch.no_grad():
        for parameter in method.learnable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method.eval()


def tiny_vit():
    sizes = {"vision_width": 12, "vision_layers": 4, "vision_heads": 3, "vision_mlp": 20, "patch_size": 8}
    text = {"context_length": 32, "vocab_size": 49408, "text_width": 8, "text_heads": 2, "text_layers": 1}
    return random_clip(Architecture(image_size=24, embed_dim=6, **sizes, **text))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).standard_normal((1, 3, 24, 24)).astype(np.float32)


def test_positive_minus_negative_is_the_region_logit(pixels):
    method = tiny("intclip", aggregation="cross_attention", pooling={"learn_scales": True, "bias": True})
    own, positive, negative = (
        maps_of_kind(method, pixels, LABEL, kind) for kind in ("regions", "positive", "negative")
    )
    assert own.keys() == positive.keys() == negative.keys() == {"sight", "semantic", "fused"}
    _, logit_scale = method.pooling.scales()
    bias = method.pooling.bias[LABEL].item()
    for name, logits in own.items():
        expected = logit_scale.item() * (positive[name] - negative[name]) + bias
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_the_fine_kind_joins_the_region_logits_of_the_views(pixels):
    method = tiny("intclip", aggregation="cross_attention")
    found = maps_of_kind(method, pixels, LABEL, "fine")
    assert found.keys() == {"sight", "semantic", "fused"}
    alone = [maps_of_kind(method, view[None], LABEL, "regions") for view in photo_views(pixels[0])]
    for name, values in found.items():
        np.testing.assert_allclose(values, join_views(np.stack([each[name] for each in alone])), atol=1e-4)


def test_gradcam_is_the_textbook_s(pixels):
    """Mean gradient of the logit over positions, times the features, summed over channels, clamped at 0."""
    method = tiny("linear_probe")
    backbone = method.backbone
    deep = backbone.deep(backbone.trunk(torch.from_numpy(pixels))).detach().requires_grad_()
    features = {"regions": backbone.head.regions(deep), "pooled": backbone.head.pooled(deep)}
    (gradient,) = torch.autograd.grad(method(features).logits[0, LABEL], deep)
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * deep).sum(dim=1)[0].relu().detach().numpy()
    found = maps_of_kind(method, pixels, LABEL, "gradcam")
    assert list(found) == ["sight"]
    np.testing.assert_allclose(found["sight"], expected, atol=1e-6)
    assert expected.max() > 0


def test_gradcam_of_two_towers_adds_before_it_cuts(pixels):
    method = tiny("intclip", aggregation="released")
    found = maps_of_kind(method, pixels, LABEL, "gradcam")
    assert set(found) == {"sight", "semantic", "fused"}
    # The trained tower by captum alone, on its last layer.
    backbone = method.backbone

    def logits(batch):
        trunk = backbone.trunk(batch)
        return method({"trunk": trunk, "regions": backbone.head.regions(backbone.deep(trunk))}).logits

    raw = {
        name: LayerGradCam(logits, layer).attribute(torch.from_numpy(pixels), target=LABEL)[0, 0].detach().numpy()
        for name, layer in (("semantic", method.semantic), ("sight", backbone.deep))
    }
    for name, cam in raw.items():
        np.testing.assert_allclose(found[name], np.maximum(cam, 0), atol=1e-6)
    np.testing.assert_allclose(found["fused"], np.maximum(raw["sight"] + raw["semantic"], 0), atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"prior"}))
def test_every_method_over_a_convnet_has_gradcam(name, pixels):
    for heat in maps_of_kind(tiny(name), pixels, LABEL, "gradcam").values():
        assert np.isfinite(heat).all()
        assert heat.min() >= 0


def test_gradcam_leaves_no_hook_behind(pixels):
    method = tiny("intclip")
    maps_of_kind(method, pixels, LABEL, "gradcam")
    assert not any(module._forward_hooks for module in method.modules())
    assert not any(parameter.grad is not None for parameter in method.parameters())


def test_attention_weights_are_those_of_the_fused_kernel():
    attention = tiny_vit().deep[0].attn
    tokens = torch.randn(2, 10, 12)
    weights = attention.weights(tokens)
    value = nn.functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)[..., 24:]
    value = value.view(2, 10, 3, 4).transpose(1, 2)
    mixed = attention.out_proj((weights @ value).transpose(1, 2).reshape(2, 10, 12))
    torch.testing.assert_close(mixed, attention(tokens))


def test_attention_flow_is_the_product_of_half_identities():
    vit = tiny_vit()
    tokens = vit.trunk[0](torch.randn(1, 3, 24, 24))
    expected, state = np.eye(10), tokens
    for block in [*list(vit.trunk)[1:], *vit.deep]:
        mean = block.attn.weights(block.ln_1(state))[0].mean(dim=0).detach().numpy()
        expected = (0.5 * mean + 0.5 * np.eye(10)) @ expected
        state = block(state)
    found = attention_flow([*list(vit.trunk)[1:], *vit.deep], tokens)[0].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_rollout_follows_what_the_label_reads(pixels):
    """Of a zero-shot model the class token; of dual prompts the regions, by the label's own weights."""
    zero_shot = maps_of_kind(tiny("zero_shot", tiny_vit()), pixels, LABEL, "rollout")
    vit = tiny_vit()
    flow = attention_flow([*list(vit.trunk)[1:], *vit.deep], vit.trunk[0](torch.from_numpy(pixels)))
    np.testing.assert_allclose(zero_shot["sight"].ravel(), flow[0, 0, 1:].detach(), atol=1e-6)
    dual = tiny("intclip", tiny_vit())
    found = [maps_of_kind(dual, pixels, label, "rollout") for label in (0, LABEL)]
    assert set(found[0]) == {"sight", "semantic", "fused"}
    weights = np.exp(maps_of_kind(dual, pixels, 0, "positive")["fused"].ravel())
    expected = (weights / weights.sum()) @ flow[0, 1:, 1:].detach().numpy()
    np.testing.assert_allclose(found[0]["sight"].ravel(), expected, atol=1e-5)
    assert not np.allclose(found[0]["fused"], found[1]["fused"])


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("intclip", "rollout", "needs a ViT"), ("zero_shot", "negative", "pairs of prompts"), ("prior", "gradcam", "map")],
)
def test_what_a_model_cannot_show_is_one_line(name, kind, message, pixels):
    with pytest.raises(IntclipError, match=message):
        maps_of_kind(tiny(name), pixels, LABEL, kind)


def test_an_unknown_kind_names_the_known():
    with pytest.raises(IntclipError, match=", ".join(KINDS)):
        check_kind("grad-cam")
