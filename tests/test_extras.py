"""Libraries that are imported only when needed."""

import os
import subprocess
import sys

import numpy as np
from PIL import Image

TRAP = """
import pathlib, socket
ask = socket.getaddrinfo
def told(host, *rest, **named):
    with pathlib.Path(__file__).with_name("asked").open("a") as file:
        file.write(f"{host}\\n")
    return ask(host, *rest, **named)
socket.getaddrinfo = told
"""


def test_no_library_tells_others_what_is_converted(tmp_path):
    """OpenVINO and NNCF would send telemetry in separate processes, except in continuous integration."""
    (tmp_path / "sitecustomize.py").write_text(TRAP)
    (tmp_path / "photos").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(tmp_path), "INTCLIP_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    command = ["export", "lite", "--out", tmp_path / "m.xml", "--int8", "--calibrate", tmp_path / "photos"]
    done = subprocess.run([sys.executable, "-m", "intclip.cli", *command], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    asked = tmp_path / "asked"
    assert not asked.exists(), asked.read_text()
    assert not (tmp_path / "intel").exists()
