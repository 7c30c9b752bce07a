"""Every engine equals torch, at every batch size, in all uses."""

import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

import intclip
from fakes import TinyBackbone
from intclip.errors import IntclipError, MissingExtraError
from intclip.inference import engines
from intclip.inference.conversion import to_openvino
from intclip.inference.engines import OpenvinoEngine, TorchEngine, choose_engine, compile_module
from intclip.inference.graph import FeatureGraph, PhotoGraph, example_pixels
from tiny_models import tiny_intclip

ENGINES = ["torch", "openvino", "onnx"]


def pixels(count: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, size, size)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled():
    """IntCLIP with its maps, in all three engines."""
    module = PhotoGraph(tiny_intclip(), exclusive=False, maps=True)
    return {name: compile_module(module, pixels(2), engine=name, device="cpu") for name in ENGINES}


@pytest.fixture(scope="module")
def slow():
    """Slow reference by plain calls: backbone, method, sigmoid; one photo at a time."""
    method = tiny_intclip()

    def run(batch):
        rows = []
        for row in torch.from_numpy(batch):
            with torch.no_grad():
                output = method(method.backbone.features(row[None], method.needs), maps=True)
            named = {"logits": output.logits, "probabilities": output.logits.sigmoid()}
            named["attention"] = output.extras["attention"]
            rows.append(named | {f"map_{name}": value for name, value in output.maps.items()})
        return {name: torch.cat([row[name] for row in rows]).numpy() for name in rows[0]}

    return run


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_engines_agree_with_plain_torch(compiled, slow, name, count):
    batch = pixels(count)
    expected, found = slow(batch), compiled[name](batch)
    assert set(found) == {"logits", "probabilities", "map_sight", "map_semantic", "map_fused", "attention"}
    for key, values in expected.items():
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], values, atol=1e-4, rtol=0, err_msg=key)
        if key == "probabilities":
            np.testing.assert_allclose(found[key], values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENGINES)
def test_a_photo_alone_and_in_a_batch_agree(compiled, name):
    batch = pixels(5)
    together = compiled[name](batch)["probabilities"]
    for i in range(5):
        np.testing.assert_allclose(compiled[name](batch[i : i + 1])["probabilities"][0], together[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENGINES)
def test_the_caller_owns_the_result(compiled, name):
    first = compiled[name](pixels(2))["probabilities"]
    kept = first.copy()
    compiled[name](pixels(2) + 1)
    np.testing.assert_array_equal(first, kept)


def test_threads_that_are_told_are_not_pinned(compiled):
    """If pinned, the threads of several processes would share the same cores."""
    engine = OpenvinoEngine(compiled["openvino"]._model, threads=1)
    found = engine._compile("THROUGHPUT")
    assert (found.get_property("INFERENCE_NUM_THREADS"), found.get_property("ENABLE_CPU_PINNING")) == (1, False)


def test_torch_computes_with_the_threads_it_is_told_and_leaves_the_process_its_own(bundle_path, monkeypatch):
    before, seen = torch.get_num_threads(), []
    forward = PhotoGraph.forward

    def watched(self, *inputs):
        seen.append(torch.get_num_threads())
        return forward(self, *inputs)

    monkeypatch.setattr(PhotoGraph, "forward", watched)
    for threads in (None, before + 1):
        intclip.load(bundle_path, engine="torch", device="cpu", threads=threads).predict_pixels(pixels(1))
    assert (seen, torch.get_num_threads()) == ([before, before + 1], before)


@pytest.mark.parametrize("name", ENGINES)
def test_many_threads_get_their_own_answers(compiled, name):
    engine = compiled[name]
    batches = [pixels(1 + i % 3) + i for i in range(24)]
    expected = [engine(batch)["logits"] for batch in batches]
    wrong: list[int] = []

    def work(start: int) -> None:
        for i in range(start, len(batches), 4):
            if not np.allclose(engine(batches[i])["logits"], expected[i], atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_ctrl_c_waits_for_what_openvino_still_computes(compiled):
    """It reads photos in place, so they must stay in memory until it has finished."""
    engine = OpenvinoEngine(compiled["openvino"]._model)
    engine(pixels(2))
    requests = [engine._idle.get() for _ in range(engine._idle.qsize())]
    computing: set[int] = set()

    class Watched:
        """A request; the second one is interrupted."""

        def __init__(self, number):
            self.number = number

        def start_async(self, inputs, *, share_inputs):
            if computing:
                raise KeyboardInterrupt
            computing.add(self.number)
            requests[self.number].start_async(inputs, share_inputs=share_inputs)

        def wait(self):
            requests[self.number].wait()
            computing.discard(self.number)

    for number in range(len(requests)):
        engine._idle.put(Watched(number))
    with pytest.raises(KeyboardInterrupt):
        engine(pixels(9))
    assert computing == set()
    assert engine._idle.qsize() == len(requests)


@pytest.mark.parametrize("failing", [0, 2])
def test_a_part_that_fails_ends_in_its_error_and_the_engine_goes_on(compiled, failing):
    engine = OpenvinoEngine(compiled["openvino"]._model)
    expected = engine(pixels(40))["logits"]
    requests = [engine._idle.get() for _ in range(engine._idle.qsize())]

    class Failing:
        def __getattr__(self, name):
            return getattr(requests[failing], name)

        def wait(self):
            requests[failing].wait()
            raise RuntimeError("no memory")

    for number, request in enumerate(requests):
        engine._idle.put(Failing() if number == failing else request)
    with pytest.raises(RuntimeError, match="no memory"):
        engine(pixels(40))
    left = [engine._idle.get() for _ in range(engine._idle.qsize())]
    assert len(left) == len(requests)
    for request in requests:
        engine._idle.put(request)
    np.testing.assert_array_equal(engine(pixels(40))["logits"], expected)


def test_text_features_are_constants():
    """The graph contains nothing of the text tower: neither embedding nor positions nor contexts."""
    method = tiny_intclip()
    model = to_openvino(PhotoGraph(method, exclusive=False, maps=True), pixels(2))
    shapes = [tuple(op.output(0).shape) for op in model.get_ops() if op.get_type_name() == "Constant"]
    text = method.backbone.text
    for tensor in (text.embedding.weight, text.position, method.prompts.context, method.prompts.sentence):
        assert tuple(tensor.shape) not in shapes
    assert any(math.prod(shape) in (5 * 8, 2 * 5 * 8) for shape in shapes), "the text features, one half or both"


@pytest.mark.parametrize("name", ENGINES[:2])
def test_frozen_features_for_the_cache(name):
    """`FeatureGraph` computes what `Backbone.features` does: an extractor for the feature cache."""
    backbone = TinyBackbone()
    names = ("trunk", "regions", "pooled", "stages")
    engine = compile_module(FeatureGraph(backbone, names), example_pixels(backbone), engine=name, device="cpu")
    batch = pixels(3)
    expected = backbone.features(torch.from_numpy(batch), names)
    found = engine(batch)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values.numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENGINES[:2])
def test_a_module_that_returns_a_bare_tensor(name):
    engine = compile_module(nn.Conv2d(3, 4, 3), pixels(1), engine=name, device="cpu")
    assert engine(pixels(5))["output"].shape == (5, 4, 22, 22)


def test_outputs_are_cut_to_what_is_asked(compiled):
    engine = TorchEngine(PhotoGraph(tiny_intclip(), exclusive=False, maps=True), device="cpu", outputs=["logits"])
    assert set(engine(pixels(2))) == {"logits"}


def test_exclusive_labels_sum_to_one():
    module = PhotoGraph(tiny_intclip(), exclusive=True, maps=False)
    found = compile_module(module, pixels(2), engine="openvino")(pixels(4))
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found["probabilities"].argmax(axis=1), found["logits"].argmax(axis=1))


def test_auto_is_openvino_on_a_cpu_and_torch_without_it(monkeypatch):
    assert choose_engine("auto", "cpu") == "openvino"
    assert choose_engine("auto", "cuda") == "torch"
    monkeypatch.setattr(engines, "accelerator", lambda: "cuda")
    assert choose_engine() == "torch"
    monkeypatch.setattr(engines, "accelerator", lambda: None)
    assert choose_engine() == "openvino"
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert choose_engine() == "torch"


def test_what_cannot_run_is_refused(monkeypatch):
    with pytest.raises(IntclipError, match="'tensorrt'"):
        choose_engine("tensorrt")
    with pytest.raises(IntclipError, match=r"openvino.*'cuda'"):
        choose_engine("openvino", "cuda")
    with pytest.raises(IntclipError, match="f32"):
        compile_module(nn.Conv2d(3, 4, 3), pixels(1), engine="onnx", precision="bf16")
    with pytest.raises(IntclipError, match=r"f16.*f32 or bf16"):
        compile_module(nn.Conv2d(3, 4, 3), pixels(1), engine="torch", precision="f16", device="cpu")
    with pytest.raises(IntclipError, match="nonsense"):
        compile_module(nn.Conv2d(3, 4, 3), pixels(1), engine="torch", device="nonsense")
    with pytest.raises(IntclipError, match=r"/nowhere/model\.xml"):
        OpenvinoEngine("/nowhere/model.xml")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"intclip\[onnx\]"):
        choose_engine("onnx")


FORK = """
import os, sys
import intclip
model = intclip.load("lite", engine=sys.argv[2], threads=2)
expected = model.predict(sys.argv[1])[0].probabilities
child = os.fork()
if child == 0:
    found = model.predict(sys.argv[1])[0].probabilities
    os._exit(0 if abs(found - expected).max() < 1e-5 else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("engine", ["torch", "openvino", "onnx"])
def test_a_forked_process_predicts(photos, engine):
    """Regression: in torch it waited forever for OpenMP's threads, which a fork does not have."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", FORK, photos[0], engine], check=True, timeout=100, env=environment)
