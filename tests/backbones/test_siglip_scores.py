"""SigLIP's probabilities and prompts against `transformers.SiglipModel`, with a scale and a bias that matter."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from seeded import values
from siglip_models import PHOTO, SMALL_TEXT, SMALL_VISION, regions, saved, words_tokenizer
from torch.testing import assert_close

from intclip.backbones import load_backbone
from intclip.labels.reading import parse_taxonomy
from intclip.methods.prompts import NEGATIVE, POSITIVE
from intclip.methods.registry import build_method

SCALE, BIAS = 12.0, -3.5
NAMES = ("dog", "a photo of a dog", "photo of a")
CONTEXTS = 3
SPARE = 60
"""First id of the vocabulary that the tokenizer does not use; contexts are written there."""


@pytest.fixture(params=["</s>", "<pad>"], ids=["one token pads and ends", "two tokens"])
def towers(request, tmp_path):
    """Transformers' model, the same as a backbone, and the words' ids; padding is SigLIP's, or SigLIP 2's."""
    model = saved(tmp_path, SMALL_VISION, SMALL_TEXT, logit_scale=math.log(SCALE), logit_bias=BIAS)
    ids = words_tokenizer(tmp_path, pad=request.param, end="</s>")
    return model, load_backbone("SigLIP-B/16", checkpoint=tmp_path), ids


def padded_ids(ids, rows):
    """All 64 ids of texts, or of words and ids."""
    pad = next(iter(ids.values()))  # the first special token
    whole = [[ids.get(word, word) for word in row] + [ids["</s>"]] for row in rows]
    return torch.tensor([row + [pad] * (64 - len(row)) for row in whole])


def method_of(backbone, name, **options):
    taxonomy = parse_taxonomy([{"name": name} for name in NAMES], "names")
    torch.manual_seed(0)
    return build_method(name, backbone, taxonomy, {"sentence_form": "fine", **options}).eval()


def spelled(model, ids, contexts, position="end"):
    """Features (K, D) of all 64 positions by transformers, with contexts (K or 1, M, width) as words of their own."""
    contexts = contexts.expand(len(NAMES), -1, -1)
    rows = []
    for index, name in enumerate(NAMES):
        own = list(range(SPARE + index * CONTEXTS, SPARE + (index + 1) * CONTEXTS))
        before = {"end": CONTEXTS, "middle": CONTEXTS // 2, "front": 0}[position]
        rows.append([*own[:before], *name.split(), *own[before:]])
    with torch.no_grad():
        model.text_model.embeddings.token_embedding.weight[SPARE : SPARE + len(NAMES) * CONTEXTS] = contexts.flatten(
            0, 1
        )
        return model.get_text_features(input_ids=padded_ids(ids, rows)).pooler_output


def test_zero_shot_probabilities_are_transformers(towers):
    model, backbone, ids = towers
    x = values("photo", PHOTO)
    with torch.no_grad():
        expected = model(input_ids=padded_ids(ids, map(str.split, NAMES)), pixel_values=x).logits_per_image
    method = method_of(backbone, "zero_shot", templates=["{}"])
    logits = method(backbone.features(x, method.needs)).logits
    assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert_close(logits.sigmoid(), expected.sigmoid(), rtol=1e-4, atol=1e-5)
    assert expected.sigmoid().max() < 0.5  # the bias matters


def test_the_neutral_scale_is_chosen_when_the_bundle_is_written_and_kept_by_predict(towers, cli, tmp_path):
    _, backbone, _ = towers
    rng, rows = np.random.default_rng(0), ["image,labels,split"]
    for split in ("train", "val", "test"):
        for name in NAMES:
            file = tmp_path / f"{split} {name}.png"
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
            rows.append(f"{file.name},{name},{split}")
    table, run = tmp_path / "photos.csv", tmp_path / "run"
    table.write_text("\n".join(rows))
    keys = (f"data.name={table}", "backbone.name=SigLIP-B/16", f"backbone.checkpoint={tmp_path}", "cache.path=off",
            "method.options.scoring=neutral", "method.options.sentence_form=fine")  # fmt: skip
    code, _, err = cli("train", "zero_shot", "--out", run, *(word for key in keys for word in ("--set", key)))
    assert code == 0, err
    code, out, err = cli("predict", file, "-m", run, "--checkpoint", tmp_path, "--engine", "torch", "--json")
    assert code == 0, err
    method = method_of(backbone, "zero_shot", scoring="neutral")
    with Image.open(file) as photo:
        expected = method(backbone.features(backbone.pixels([photo]), method.needs)).logits.sigmoid()[0]
    scores = json.loads(out)[0]["scores"]
    assert_close(torch.tensor([scores[name] for name in NAMES]), expected, rtol=0, atol=1e-5)
    assert expected.max() > 0.5


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [True, False])
def test_learned_prompts_have_transformers_logits(towers, class_specific, position):
    model, backbone, ids = towers
    options = {"context_length": CONTEXTS, "class_specific": class_specific, "class_token_position": position}
    method = method_of(backbone, "coop", period=False, bias=False, **options)
    x = values("photo", PHOTO)
    texts = F.normalize(spelled(model, ids, method.prompts.context[0], position), dim=1)
    with torch.no_grad():
        photos = F.normalize(model.get_image_features(pixel_values=x).pooler_output, dim=1)
        logits = method(backbone.features(x, method.needs)).logits
    assert_close(logits, SCALE * photos @ texts.T + BIAS, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), [("dualcoop", {}), ("intclip", {}), ("intclip", {"branches": "single"})])
def test_the_bias_cancels_in_prompt_pairs(towers, name, options):
    """The logit is z₊ − z₋ with z = Σ w · (e^s cos + b) and weights that sum to 1, at the scale of SigLIP's loss."""
    model, backbone, ids = towers
    pooling = {"similarity_scale": SCALE, "logit_scale": 1}
    method = method_of(backbone, name, context_length=CONTEXTS, period=False, pooling=pooling, **options)
    x = values("photo", PHOTO)
    texts = {half: spelled(model, ids, method.prompts.context[half]) for half in (NEGATIVE, POSITIVE)}
    with torch.no_grad():
        similar = {half: SCALE * regions(model, x) @ F.normalize(texts[half], dim=1).T + BIAS for half in texts}
        logits = method(backbone.features(x, method.needs)).logits
    weights = similar[POSITIVE].softmax(dim=1)
    assert_close(logits, (weights * (similar[POSITIVE] - similar[NEGATIVE])).sum(dim=1), rtol=1e-4, atol=1e-4)
