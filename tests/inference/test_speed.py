import json
from io import BytesIO

import pytest
from PIL import Image

from intclip.inference import speed
from intclip.inference.loading import load
from intclip.timing import median_seconds, paired


class Clock:
    """A clock that advances only with work."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        def run():
            self.now += seconds if isinstance(seconds, float) else next(seconds)

        return run


@pytest.fixture(params=["wall", "cpu"])
def clock(request, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter" if request.param == "wall" else "time.process_time", clock)
    clock.name = request.param
    return clock


def test_paired_takes_medians_of_rounds(clock):
    slow, fast = iter([9.0, 4.0, 8.0, 2.0]), iter([9.0, 2.0, 2.0, 2.0])
    report = paired(
        {"slow": clock.work(slow), "fast": clock.work(fast)}, baseline="slow", repeats=3, warmup=1, clock=clock.name
    )
    assert report["runs"] == {"slow": [4.0, 8.0, 2.0], "fast": [2.0, 2.0, 2.0]}
    assert report["seconds"] == {"slow": 4.0, "fast": 2.0}
    assert report["speedup"] == {"slow": 1.0, "fast": 2.0}  # of the rounds' ratios 2, 4 and 1


def test_median_seconds_measures_long_enough(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    assert median_seconds(clock.work(0.5), seconds=4.0) == 0.5
    assert clock.now == pytest.approx(5.0)  # two for warm-up, eight measured
    clock.now = 0.0
    assert median_seconds(clock.work(2.0), seconds=1.0) == 2.0
    assert clock.now == 14.0  # two for warm-up, at least five measured


def test_made_photos_are_jpegs_and_always_the_same():
    first, second = speed.made_photos(2), speed.made_photos(2)
    assert first == second
    assert first[0] != first[1]
    photo = Image.open(BytesIO(first[0]))
    assert (photo.format, photo.size) == ("JPEG", speed.PHOTO_SIZE)


def test_measure_reports_every_engine(bundle_path, photos):
    asked, said = [], []

    def open_model(engine):
        asked.append(engine)
        return load(bundle_path, engine=engine)

    report = speed.measure(
        open_model, ["torch", "openvino"], photos=photos, batch_size=2, seconds=0.01, announce=said.append
    )
    assert asked == list(report["engines"]) == ["torch", "openvino"]
    assert report["photos"] == {"count": 5, "kind": "given"}
    assert report["batch_size"] == 2
    for figures in report["engines"].values():
        assert set(figures) == {"load_s", "photos_per_s", "one_photo_ms", "from_files_per_s"}
        assert all(value > 0 for value in figures.values())
    assert [line.split(":")[0] for line in said] == ["torch"] * 4 + ["openvino"] * 4
    assert report["machine"]["cores"] >= 1
    assert "torch" in report["machine"]["versions"]


def test_command_prints_a_table(cli, bundle_path, photos):
    arguments = ("benchmark", bundle_path, "--engines", "torch", "--seconds", "0.1", "--batch-size", "2")
    code, printed, errors = cli(*arguments, "--photos", photos[0].parent)
    assert (code, errors) == (0, "")
    lines = printed.splitlines()
    assert lines[1].split() == ["engine", "load", "s", "photos/s", "one", "photo", "ms", "from", "files/s"]
    assert lines[2].startswith("torch ")


def test_command_json_is_all_that_is_printed(cli, bundle_path):
    code, printed, _ = cli(
        "benchmark", bundle_path, "--engines", "torch", "--seconds", "0.1", "--batch-size", "1", "--json"
    )
    assert code == 0
    report = json.loads(printed)
    assert report["photos"] == {"count": 4, "kind": "made, 500 × 375 JPEG"}
    assert report["precision"] == "f32"
    assert list(report["engines"]) == ["torch"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engines", "tensorrt"), "unknown engine 'tensorrt': choose torch, openvino or onnx"),
        (("--photos", "nowhere"), "nowhere"),
        (("--batch-size", "0"), "--batch-size"),
    ],
)
def test_wrong_input_is_one_line(cli, bundle_path, arguments, message):
    code, printed, errors = cli("benchmark", bundle_path, *arguments)
    assert (code, printed) == (2, "")
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
