"""Real photos that ship inside scikit-image and scikit-learn: for the demo, the app's examples and tests."""

from importlib.util import find_spec
from pathlib import Path

from intclip.errors import MissingExtraError

PHOTOS = {
    "skimage": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "hubble_deep_field.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
"""Package to names of the photographs among its example images."""
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


def demo_photos() -> list[Path]:
    """Paths of those photos that are installed, by name.

    Raises:
        MissingExtraError: None is.
    """
    found = [
        path
        for package, names in PHOTOS.items()
        if (spec := find_spec(package)) is not None and spec.origin is not None
        for path in (Path(spec.origin).parent / _FOLDERS[package] / name for name in names)
        if path.is_file()
    ]
    if not found:
        raise MissingExtraError("the demo photos ship inside scikit-image; install it with: pip install scikit-image")
    return sorted(found, key=lambda path: path.name)
