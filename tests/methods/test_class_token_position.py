"""Position of the class text among the contexts, compared with prompts built token by token."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.architecture import Architecture
from intclip.backbones.base import TextTower
from intclip.backbones.clip import random_clip
from intclip.backbones.registry import load_backbone
from intclip.errors import RecipeError
from intclip.inference.engines import compile_module
from intclip.inference.graph import PhotoGraph
from intclip.methods.prompts import ClassTokenPosition, PromptLearner, PromptOptions
from intclip.methods.registry import build_method

POSITIONS: tuple[ClassTokenPosition, ...] = get_args(ClassTokenPosition)
CLIP = Architecture(
    embed_dim=32,
    image_size=48,
    vision_layers=1,
    vision_width=64,
    patch_size=16,
    text_width=64,
    text_layers=2,
    context_length=77,
    vocab_size=49408,
)
NAMES = ["cat", "Natural beauty.", "To feel the joy of being in love, with family!", "a (b).", "?", "in e.g. a park..."]
CLOSING = {"clip": [0, 1, 1, 0, 0, 1], "lite": [0, 1, 1, 1, 0, 3], "tiny": [0] * 6}
"""Number of closing tokens of each name. In CLIP, ")." and "..." are one token each, of which only the second is purely
closing; the tiny tower's tokens are words including their closing punctuation."""


@pytest.fixture(scope="module")
def towers() -> dict[str, TextTower]:
    texts = {"clip": random_clip(CLIP, seed=3).text, "lite": load_backbone("lite").text, "tiny": TinyBackbone().text}
    return {name: text.double() for name, text in texts.items()}


def reference(text: TextTower, name: str, closing: int, context: Tensor, position: str) -> Tensor:
    """Return one class's prompt (L, width), token by token, without padding."""
    tokens = text.tokenize([name])
    start, *words, end = text.embed(tokens)[0, : int(text.lengths(tokens)[0])]
    words, closes = words[: len(words) - closing], words[len(words) - closing :]
    vectors = list(context)
    before = {"end": len(vectors), "middle": len(vectors) // 2, "front": 0}[position]
    return torch.stack([start, *vectors[:before], *words, *vectors[before:], *closes, end])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("length", [0, 1, 4, 5])
@pytest.mark.parametrize("tower", ["clip", "lite", "tiny"])
def test_prompts_token_by_token(towers: dict[str, TextTower], tower: str, length: int, position: str) -> None:
    text = towers[tower]
    torch.manual_seed(0)
    prompts = PromptLearner(text, NAMES, PromptOptions(context_length=length), class_token_position=position).double()
    prompts.context.data.normal_()
    embeddings, lengths = prompts.embeddings()
    features = prompts.encode(text)
    shift = torch.randn(3, text.width, dtype=features.dtype)
    shifted = prompts.encode_shifted(text, shift)
    for half in range(2):
        for k, name in enumerate(NAMES):
            alone = reference(text, name, CLOSING[tower][k], prompts.context[half, k], position)
            row = half * len(NAMES) + k
            assert lengths[row] == len(alone)
            assert torch.equal(embeddings[row, : len(alone)], alone)
            count = torch.tensor([len(alone)])
            torch.testing.assert_close(features[half, k], text.encode_embeddings(alone[None], count)[0])
            moved = reference(text, name, CLOSING[tower][k], prompts.context[half, k] + shift[1], position)
            torch.testing.assert_close(shifted[1, half, k], text.encode_embeddings(moved[None], count)[0])


def test_lengths_and_padding_do_not_depend_on_the_position(towers: dict[str, TextTower]) -> None:
    """So batches by length, and the last block at the end token only, work as for "end"."""
    learners = [
        PromptLearner(towers["clip"], NAMES, PromptOptions(context_length=5), class_token_position=p) for p in POSITIONS
    ]
    shapes = {prompts.embeddings()[0].shape for prompts in learners}
    assert shapes == {(12, 5 + towers["clip"].tokenize(NAMES).shape[1], 64)}
    assert len({tuple(prompts.embeddings()[1].tolist()) for prompts in learners}) == 1


@pytest.mark.parametrize("class_specific", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_gradient_reaches_every_context_vector(
    towers: dict[str, TextTower], position: str, class_specific: bool
) -> None:
    text = towers["clip"]
    torch.manual_seed(0)
    prompts = PromptLearner(
        text,
        NAMES,
        PromptOptions(context_length=5, class_specific=class_specific),
        class_token_position=position,
    ).double()
    prompts.context.data.normal_()
    weights = torch.randn(2, len(NAMES), text.embed_dim, dtype=torch.float64)
    (prompts.encode(text) * weights).sum().backward()
    gradient = prompts.context.grad
    assert gradient is not None
    assert gradient.shape == (2, len(NAMES) if class_specific else 1, 5, text.width)
    assert (gradient.norm(dim=-1) > 0).all()
    step = 1e-5 * torch.randn_like(gradient)
    with torch.no_grad():
        prompts.context.add_(step)
        above = (prompts.encode(text) * weights).sum()
        prompts.context.sub_(2 * step)
        below = (prompts.encode(text) * weights).sum()
    torch.testing.assert_close((gradient * step).sum(), (above - below) / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_a_method_takes_the_position(name: str) -> None:
    """Context words are split around the class text, "a photo class of a", which equals a zero-shot template."""
    backbone, taxonomy = TinyBackbone(), tiny_taxonomy()
    features = backbone.features(torch.randn(3, 3, 24, 24), ("pooled", "regions"))
    template = {"end": "a photo of a {}", "middle": "a photo {} of a", "front": "{} a photo of a"}
    for position in POSITIONS:
        options = {
            "context_length": 4,
            "context_words": "a photo of a",
            "class_token_position": position,
            "period": False,
        }
        method = build_method(name, backbone, taxonomy, options)
        if name == "cocoop":
            with torch.no_grad():
                for parameter in method.meta_net.parameters():
                    parameter.zero_()
        zero_shot = build_method(
            "zero_shot", backbone, taxonomy, {"sentence_form": "fine", "templates": (template[position],)}
        )
        torch.testing.assert_close(method(features).logits, zero_shot(features).logits)
    with pytest.raises(RecipeError, match="class_token_position"):
        build_method(name, backbone, taxonomy, {"class_token_position": "behind"})


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_engines_compute_it(name: str) -> None:
    backbone = TinyBackbone()
    options = {"context_length": 3, "class_token_position": "middle"}
    method = build_method(name, backbone, tiny_taxonomy(), options)
    pixels = torch.randn(5, 3, 24, 24)
    with torch.no_grad():
        expected = method.eval()(backbone.features(pixels, method.needs)).logits
    engine = compile_module(
        PhotoGraph(method, exclusive=False, maps=False), pixels[:2].numpy(), engine="openvino", device="cpu"
    )
    torch.testing.assert_close(torch.from_numpy(engine(pixels.numpy())["logits"]), expected, atol=1e-4, rtol=0)
