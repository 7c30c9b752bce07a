import io
import os
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import encode, jpeg_of_claimed_size, photo, png_header, write_photo
from PIL import Image, ImageOps

from intclip.data.images import MAX_PIXELS, MAX_SCANS, describe, find_images, read_image, whole_size
from intclip.data.sample import TarMember
from intclip.errors import ImageError


def close(image: Image.Image, expected: Image.Image, tolerance: float = 0) -> bool:
    a, b = np.asarray(image, dtype=float), np.asarray(expected, dtype=float)
    return a.shape == b.shape and float(np.abs(a - b).max()) <= tolerance


def one_line(error: pytest.ExceptionInfo[ImageError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_kinds_give_the_same_pixels(kind: str) -> None:
    assert close(read_image(encode(photo(), kind)), photo())


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("JPEG", 40), ("WEBP", 40), ("AVIF", 40), ("GIF", 60), ("JPEG2000", 20)]
)
def test_lossy_kinds_give_nearly_the_same_pixels(kind: str, tolerance: float) -> None:
    image = read_image(encode(photo(size=(64, 48)), kind))
    assert image.mode == "RGB"
    assert close(image, photo(size=(64, 48)), tolerance)


def test_every_kind_of_source_gives_the_same_photo(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png")
    content = path.read_bytes()
    archive = tmp_path / "x.tar"
    archive.write_bytes(b"#" * 512 + content + b"#" * 100)
    sources = [path, str(path), content, photo(), np.asarray(photo()), TarMember(archive, "a.png", 512, len(content))]
    for source in sources:
        assert close(read_image(source), photo())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(photo(size=(32, 16)), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert close(read_image(content), expected)
    assert read_image(content).size == ((16, 32) if orientation >= 5 else (32, 16))


def test_damaged_exif_does_not_cost_the_photo() -> None:
    content = encode(photo(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
        assert read_image(content).size == (40, 30)


def test_cmyk_jpeg_is_converted() -> None:
    image = read_image(encode(photo().convert("CMYK"), quality=95))
    assert image.mode == "RGB"
    assert close(image, photo(), 40)


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, axis=0)
    image = np.asarray(read_image(encode(Image.fromarray(ramp), "PNG")))
    np.testing.assert_allclose(image[0, :, 0], np.arange(256), atol=1)
    image = np.asarray(read_image(encode(Image.fromarray(ramp), "TIFF")))
    np.testing.assert_allclose(image[0, :, 2], np.arange(256), atol=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0.0, np.nan, 1000.0]], np.float32), [0, 0, 255]),
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-5, 0, 100_000]], np.int32), [0, 0, 255]),
    ],
)
def test_deep_greyscale_is_scaled_not_clipped(values: np.ndarray, expected: list[int]) -> None:
    image = np.asarray(read_image(encode(Image.fromarray(values), "TIFF")))
    np.testing.assert_allclose(image[0, :, 0], expected, atol=1)


def test_transparency_lies_on_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[1, 1] = (0, 0, 0, 128)
    expected = np.full((2, 2, 3), 255, np.uint8)
    expected[0, 0] = (10, 20, 30)
    expected[1, 1] = 127
    for source in (
        Image.fromarray(rgba),
        rgba,
        encode(Image.fromarray(rgba), "PNG"),
        Image.fromarray(rgba).convert("RGBa"),
    ):
        np.testing.assert_allclose(np.asarray(read_image(source)), expected, atol=1)


def test_palette_with_transparent_colour_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    content = encode(image, "PNG", transparency=1)
    np.testing.assert_array_equal(np.asarray(read_image(content)), [[[200, 0, 0], [255, 255, 255]]])
    content = encode(image, "GIF", transparency=1)
    np.testing.assert_array_equal(np.asarray(read_image(content)), [[[200, 0, 0], [255, 255, 255]]])


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "I", "F"]
)
def test_every_mode_becomes_rgb(mode: str) -> None:
    white = Image.new("RGB", (3, 2), "white")
    if mode == "LAB":
        image = Image.new("LAB", (3, 2), (255, 128, 128))
    elif mode == "La":
        image = white.convert("LA").convert("La")
    elif mode == "PA":
        image = white.convert("RGBA").convert("PA")
    else:
        image = white.convert(mode)
    assert image.mode == mode
    result = read_image(image)
    assert result.mode == "RGB"
    assert np.asarray(result).min() >= 254


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        first = np.asarray(read_image(content)).astype(int).mean(axis=(0, 1))
        assert first[0] > 240
        assert first[1:].max() < 15


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_arrays(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 255, np.uint8)
    assert read_image(array).size == (4, 5)
    assert np.asarray(read_image(array[::-1])).min() == 255  # not contiguous


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
    ],
)
def test_wrong_arrays_are_refused(array: np.ndarray, word: str) -> None:
    with pytest.raises(ImageError, match=word) as error:
        read_image(array)
    one_line(error)


def test_real_photos_from_packages() -> None:
    for array in (sklearn.datasets.load_sample_image("china.jpg"), skimage.data.astronaut(), skimage.data.coffee()):
        assert read_image(array).size == (array.shape[1], array.shape[0])
    folder = Path(sklearn.datasets.__file__).parent / "images"
    for path in find_images(folder):
        np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(Image.open(path)))


# -- the decoder's own downscaling


@settings(max_examples=25, deadline=None, derandomize=True)
@given(width=st.integers(1, 900), height=st.integers(1, 900), side=st.integers(1, 400))
def test_min_side_is_a_lower_bound(width: int, height: int, side: int) -> None:
    content = encode(Image.new("RGB", (width, height), "navy"))
    image = read_image(content, min_side=side)
    assert whole_size(image) == (width, height)
    assert min(image.size) >= min(side, width, height)
    assert image.size in [(-(-width // scale), -(-height // scale)) for scale in (1, 2, 4, 8)]


def test_min_side_halves_large_jpegs_and_changes_little() -> None:
    large = Image.fromarray(skimage.data.coffee()).resize((2400, 1600), Image.Resampling.BICUBIC)
    content = encode(large, quality=90)
    drafted = read_image(content, min_side=448)
    assert drafted.size == (1200, 800)
    small = [
        np.asarray(image.resize((336, 224), Image.Resampling.BICUBIC), float)
        for image in (read_image(content), drafted)
    ]
    assert np.abs(small[0] - small[1]).mean() < 1.0
    assert read_image(encode(large, "WEBP"), min_side=100).size == (2400, 1600)  # other decoders cannot


def test_min_side_with_rotation_and_multi_picture_files() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_image(encode(photo(size=(800, 400)), exif=exif), min_side=100)
    assert (turned.size, whole_size(turned)) == ((100, 200), (400, 800))
    mpo = encode(photo(size=(800, 400)), "MPO", save_all=True, append_images=[photo(1, (80, 40))])
    assert read_image(mpo, min_side=100).size in ((200, 100), (800, 400))


# -- refusals


def test_refusals_name_the_file_and_the_fault(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello, I am not an image")
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html>moved</html>")
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (tmp_path / "bomb.jpg").write_bytes(jpeg_of_claimed_size(60_000, 60_000))
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 600)
    (tmp_path / "vector.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    cases = {
        "none.jpg": "no such photo",
        ".": "is a folder",
        "empty.jpg": r"0 bytes",
        "text.jpg": "not a supported image",
        "page.jpg": "not a supported image .*web page",
        "bomb.png": "too large",
        "bomb.jpg": "too large",
        "photo.heic": "HEIC",
        "vector.eps": "not a supported image",
    }
    for name, fault in cases.items():
        with pytest.raises(ImageError, match=fault) as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in one_line(error)


def test_bombs_are_refused_before_decoding() -> None:
    tracemalloc.start()
    for content in (png_header(60_000, 60_000), jpeg_of_claimed_size(60_000, 60_000), png_header(15_000, 15_000)):
        with pytest.raises(ImageError, match="too large"):
            read_image(content)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_the_limit_of_pixels_can_be_lowered() -> None:
    with pytest.raises(ImageError, match="40 × 30"):
        read_image(encode(photo()), max_pixels=1199)
    assert read_image(encode(photo()), max_pixels=1200).size == (40, 30)
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_a_jpeg_of_very_many_scans_is_refused_and_a_progressive_one_is_read() -> None:
    content = encode(photo(), "JPEG", progressive=True)
    assert content.count(b"\xff\xda") > 5
    assert close(read_image(content), read_image(encode(photo(), "JPEG")), 1)
    scan = content[content.rfind(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match=rf"\d+ scans.*{MAX_SCANS}") as error:
        read_image(content[:-2] + MAX_SCANS * scan + content[-2:])
    one_line(error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "JPEG2000"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    content = encode(Image.fromarray(skimage.data.astronaut()[100:228, 100:260]), kind)
    with pytest.raises(ImageError) as error:
        read_image(content[: int(len(content) * share)])
    one_line(error)


def test_other_wrong_sources(tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(b"short")
    cases: dict[object, str] = {
        b"": "empty",
        "https://example.org/a.jpg": "download",
        "nul\0byte.jpg": "cannot read",
        TarMember(archive, "a.jpg", 0, 100): "truncated",
        TarMember(archive, "a.jpg", 0, 0): "empty",
        TarMember(tmp_path / "none.tar", "a.jpg", 0, 100): "no such archive",
    }
    for source, fault in cases.items():
        with pytest.raises(ImageError, match=fault) as error:
            read_image(source)
        one_line(error)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    found: list[str] = []

    def read() -> None:
        try:
            read_image(tmp_path / "pipe.jpg")
        except ImageError as error:
            found.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(5)
    assert found
    assert "not a regular file" in found[0]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_mutated_files_give_a_photo_or_an_image_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM"]))
    content = bytearray(encode(photo(), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert read_image(bytes(content), max_pixels=10**7).mode == "RGB"
    except ImageError:
        return


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0"]),
)
def test_random_bytes_are_refused(content: bytes, magic: bytes) -> None:
    with pytest.raises(ImageError):
        read_image(magic + content)


def test_describe() -> None:
    assert describe(TarMember(Path("a.tar"), "b.jpg", 0, 1)) == "a.tar!b.jpg"
    assert describe(np.zeros((1, 1), np.uint8)) == "the given array"


# -- finding


def tree(root: Path) -> Path:
    for name in (
        "b.jpg",
        "a.png",
        "sub/c.JPEG",
        "sub/deep/d.webp",
        ".hidden/e.jpg",
        "sub/.f.jpg",
        "notes.txt",
        "g.heic",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_folders_are_searched_in_a_fixed_order(tmp_path: Path) -> None:
    tree(tmp_path)
    assert names(find_images(tmp_path), tmp_path) == ["a.png", "b.jpg", "g.heic", "sub/c.JPEG", "sub/deep/d.webp"]


def test_arguments_keep_their_order_and_count_once(tmp_path: Path) -> None:
    tree(tmp_path)
    found = find_images([tmp_path / "b.jpg", tmp_path, str(tmp_path / "a.png")])
    assert names(found, tmp_path)[:2] == ["b.jpg", "a.png"]
    assert len(found) == len(set(found)) == 5


def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path)
    assert names(find_images(f"{tmp_path}/**/*.*"), tmp_path) == [
        "a.png",
        "b.jpg",
        "g.heic",
        "sub/c.JPEG",
        "sub/deep/d.webp",
    ]
    monkeypatch.chdir(tmp_path)
    assert find_images("*.p?g") == [Path("a.png")]
    (tmp_path / "odd[1].jpg").write_bytes(b"x")
    assert find_images("odd[1].jpg") == [Path("odd[1].jpg")]  # a file of that very name


def test_lists(tmp_path: Path) -> None:
    tree(tmp_path)
    listing = tmp_path / "list.txt"
    listing.write_text(f"b.jpg\n\nsub/c.JPEG\r\n{tmp_path / 'a.png'}\n", encoding="utf-8-sig")
    assert names(find_images(listing), tmp_path) == ["b.jpg", "sub/c.JPEG", "a.png"]
    listing.write_text("b.jpg\nmissing.jpg\n")
    with pytest.raises(ImageError, match=r"line 2.*missing\.jpg") as error:
        find_images(listing)
    one_line(error)
    listing.write_bytes(b"\xff\xfe\x00b")
    with pytest.raises(ImageError, match="UTF-8"):
        find_images(listing)
    listing.write_text("\n")
    with pytest.raises(ImageError, match=listing.name):
        find_images(listing)


def test_finding_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    for paths, fault in (
        ([], "no photos given"),
        ([""], "an empty path"),
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "hollow", "no photos in folder"),
        (f"{tmp_path}/*.jpg", "no photos match"),
        ("a\0b", "not a path|no such"),
    ):
        with pytest.raises(ImageError, match=fault) as error:
            find_images(paths)
        one_line(error)


def test_symbolic_links_do_not_lead_in_circles(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert len(find_images(tmp_path)) == 5
