"""Real photos that ship inside scikit-image and scikit-learn: for the demo, the app's examples and tests."""

from importlib.util import find_spec
from pathlib import Path

from intclip.errors import MissingExtraError

PHOTOS = {
    "chelsea.png": "skimage",
    "china.jpg": "sklearn",
    "coffee.png": "skimage",
    "astronaut.png": "skimage",
    "flower.jpg": "sklearn",
    "motorcycle_left.png": "skimage",
    "rocket.jpg": "skimage",
    "hubble_deep_field.jpg": "skimage",
}
"""Example photos of packages, in display order, and their packages."""
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


def demo_photos() -> list[Path]:
    """Return the paths of installed demo photos.

    Raises:
        MissingExtraError: None is installed.
    """
    found = [
        path
        for name, package in PHOTOS.items()
        if (spec := find_spec(package)) is not None and spec.origin is not None
        if (path := Path(spec.origin).parent / _FOLDERS[package] / name).is_file()
    ]
    if not found:
        raise MissingExtraError("the demo photos ship inside scikit-image; install it with: pip install scikit-image")
    return found
