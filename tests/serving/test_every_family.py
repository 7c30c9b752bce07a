"""Every method and every family of backbones behind the API: its answers are those of the method in torch."""

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from watched import photo

from fakes import tiny_taxonomy
from families import FAMILIES
from intclip.data.images import read_image
from intclip.data.loading import DRAFT_FACTOR
from intclip.inference.export import make_card
from intclip.inference.predictor import Predictor
from intclip.methods.registry import METHODS, build_method, method_options
from intclip.serving.api import create_api
from intclip.serving.settings import Settings

PHOTOS = [photo(255, 10), photo(20, 255, 90, size=(140, 101), kind="JPEG"), photo(9, 8, 200, size=(70, 190))]


def served(family: str) -> list[str]:
    """IntCLIP is served on every family, every other method on one."""
    others = [name for name in sorted(METHODS) if name != "intclip"]
    return ["intclip", *others[[*FAMILIES].index(family) :: len(FAMILIES)]]


def prepared(name, backbone):
    torch.manual_seed(1)
    options = {"context_length": 3} if "context_length" in method_options(name).model_fields else {}
    method = build_method(name, backbone, tiny_taxonomy(), options)
    with torch.no_grad():
        pixels = torch.randn(16, 3, backbone.image_size, backbone.image_size)
        targets = (torch.rand(16, len(tiny_taxonomy())) < 0.4).float()
        method.prepare([(backbone.features(pixels, method.needs), targets)])
    return method.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_served_answers_are_the_method_s(family):
    methods = {name: prepared(name, FAMILIES[family]()) for name in served(family)}
    models = {
        name: Predictor(
            make_card(method, model=name, thresholds=0.5), engine="torch", build=lambda method=method: method
        )
        for name, method in methods.items()
    }
    files = [("images", (f"{place}.png", content, "image/png")) for place, content in enumerate(PHOTOS)]
    with TestClient(create_api(models, Settings())) as client:
        for name, method in methods.items():
            read = [read_image(content, min_side=DRAFT_FACTOR * method.backbone.image_size) for content in PHOTOS]
            pixels = torch.stack([method.backbone.preprocess(image) for image in read])
            with torch.no_grad():
                expected = method(method.backbone.features(pixels, method.needs)).logits.sigmoid().numpy()
            answer = client.post("/v1/predict", files=files, data={"model": name}).json()
            found = np.array([list(one["scores"].values()) for one in answer["results"]])
            np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
            if models[name].maps:
                asked = {"model": name, "label": "class 1"}
                shown = client.post("/v1/explain", files=[("image", files[1][1])], data=asked).json()
                direct = models[name].explain(PHOTOS[1], "class 1")
                assert set(shown["regions"]) == set(direct.regions)
                for title, region in direct.regions.items():
                    np.testing.assert_allclose(shown["regions"][title], region, atol=1e-4, err_msg=f"{name}, {title}")


def test_every_method_is_served():
    assert {name for family in FAMILIES for name in served(family)} == set(METHODS)
