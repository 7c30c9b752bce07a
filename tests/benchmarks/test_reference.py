"""The plain version of the released computation in benchmarks/reference.py, compared with methods/intclip."""

import pytest
import torch
from benchmarks.reference import ReferenceIntCLIP, asymmetric_loss, make_optimizer, train_step
from benchmarks.weights import TINY, random_state_dict
from torch.testing import assert_close

from intclip.backbones import from_openai_state_dict
from intclip.labels import load_taxonomy
from intclip.methods.registry import build_method
from intclip.training.recipe import load_recipe

OPTIONS = load_recipe("released").method.options
CONTEXTS = 16


@pytest.fixture(scope="module")
def pair():
    """The reference and our method with the same weights, in double precision."""
    state = random_state_dict(TINY)
    backbone = from_openai_state_dict(state, split="released")
    torch.manual_seed(1)
    method = build_method("intclip", backbone, load_taxonomy("intentonomy"), OPTIONS)
    sentences = method.taxonomy.sentences(OPTIONS["sentence_form"])
    prompts = backbone.tokenize([" ".join(["x"] * CONTEXTS) + f" {sentence}." for sentence in sentences])
    tokens = torch.zeros(len(prompts), TINY.context_length, dtype=torch.int64)
    tokens[:, : prompts.shape[1]] = prompts
    reference = ReferenceIntCLIP(TINY, tokens, CONTEXTS)
    reference.load_openai(state)
    with torch.no_grad():
        method.prompts.context[0].copy_(reference.context_negative)
        method.prompts.context[1].copy_(reference.context_positive)
        attention, theirs = method.aggregation.attention, reference.visual.aggregation
        theirs.gamma.fill_(0.7)
        attention.alpha.copy_(theirs.gamma[0])
        for ours, other in zip(*layers(attention, theirs), strict=True):
            ours.weight.copy_(other.weight.flatten(2))
            ours.bias.copy_(other.bias)
    return reference.double(), method.double().train()


def layers(attention, theirs):
    return (
        (attention.query, attention.key, attention.value),
        (theirs.query_conv, theirs.key_conv, theirs.value_conv),
    )


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(3, 3, TINY.image_size, TINY.image_size, generator=generator, dtype=torch.float64)
    return pixels, (torch.rand(3, 28, generator=generator) < 0.2).double()


def our_maps(method, pixels):
    features = method.backbone.features(pixels, method.needs)
    semantic = method.backbone.head.regions(method.semantic(features["trunk"]))
    return semantic, method.aggregation(semantic, features["regions"])


def test_text_features_agree(pair):
    reference, method = pair
    ours = method.prompts.encode(method.backbone.text)
    assert_close(ours.flatten(0, 1), reference.encode_prompts(), rtol=1e-9, atol=1e-11)


def test_fused_maps_agree_but_for_the_patch_that_comes_twice(pair, batch):
    reference, method = pair
    semantic, fused = our_maps(method, batch[0])
    theirs = reference.visual(batch[0])
    assert_close(theirs[:, :, 1:], fused.flatten(2), rtol=1e-9, atol=1e-11)
    assert_close(theirs[:, :, 0], semantic[:, :, 0, 0], rtol=1e-9, atol=1e-11)


def test_released_recipe_gives_logits_loss_and_gradients_of_the_released_code(pair, batch):
    reference, method = pair
    pixels, targets = batch
    reference.zero_grad()
    method.zero_grad()
    their_logits = reference(pixels)
    # The released loss clamps logarithms at 1e-8, ours does not: compare where this has no effect.
    targets = targets * (their_logits.softmax(dim=1)[:, 1] > 1e-6)
    assert targets.sum() > 5
    their_loss = asymmetric_loss(their_logits, targets)
    their_loss.backward()

    output = method(method.backbone.features(pixels, method.needs))
    terms = method.loss(output, targets)
    assert list(terms) == ["classification"]
    loss = terms["classification"]
    loss.backward()

    assert_close(output.logits, their_logits[:, 1] - their_logits[:, 0], rtol=1e-9, atol=1e-11)
    assert_close(loss.double(), their_loss, rtol=1e-6, atol=0)  # our loss computes in float32, also under autocast
    ours = [method.prompts.context.grad[0], method.prompts.context.grad[1]]
    theirs = [reference.context_negative.grad, reference.context_positive.grad]
    for mine, other in zip(*layers(method.aggregation.attention, reference.visual.aggregation), strict=True):
        ours += [mine.weight.grad, mine.bias.grad]
        theirs += [other.weight.grad.flatten(2), other.bias.grad]
    ours += [parameter.grad for parameter in method.semantic.parameters()]
    theirs += [
        parameter.grad for name, parameter in reference.visual.named_parameters() if name.startswith("semantic_layer")
    ]
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (
            mine - other
        ).norm() <= 1e-6 * other.norm() + 1e-15  # the key bias has no gradient: softmax is invariant to it
    assert sum(parameter.numel() for parameter in method.learnable_parameters()) == sum(
        parameter.numel() for group in make_optimizer(reference).param_groups for parameter in group["params"]
    )


def test_probabilities_agree_in_evaluation_and_differ_without_the_patch_that_comes_twice(pair, batch):
    reference, method = pair
    method.eval()
    options = method.options
    with torch.no_grad():
        features = method.backbone.features(batch[0], method.needs)
        theirs = reference(batch[0]).softmax(dim=1)[:, 1]
        assert_close(method(features).logits.sigmoid(), theirs, rtol=1e-9, atol=1e-11)
        method.options = options.model_copy(update={"first_region": False})
        assert (method(features).logits.sigmoid() - theirs).abs().max() > 1e-4
    method.options = options
    method.train()


def test_reference_learns(batch):
    torch.manual_seed(3)
    reference = ReferenceIntCLIP(TINY, torch.tensor([[49406, *range(1, 30), 49407] + [0] * 46] * 4), CONTEXTS)
    reference.load_openai(random_state_dict(TINY))
    optimizer = make_optimizer(reference, rate=0.01)
    pixels, targets = batch[0].float(), batch[1][:, :4].float()
    losses = [train_step(reference, optimizer, pixels, targets) for _ in range(4)]
    assert losses[-1] < losses[0]
    # As released: the text encoder's weights have unused gradients; running statistics never change.
    assert reference.transformer.resblocks[0].mlp.c_fc.weight.grad is not None
    assert reference.visual.layer3[0].conv1.weight.grad is None
