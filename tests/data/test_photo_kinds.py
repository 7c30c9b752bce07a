"""Photos of every kind: colour profiles, deep TIFF, HEIC, JPEG XL, raw files, streams, callers' own objects."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tifffile
from PIL import Image, ImageCms

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.profiles import ADOBE, GAMMA, P3, cmyk_profile, rgb_profile
from makers import encode, photo

from intclip.data import colour, formats
from intclip.data.images import MAX_PIXELS, data_url, is_photo, read_image, whole_size
from intclip.data.jxl import jxl_size
from intclip.data.sample import Lenient
from intclip.errors import ImageError

PHOTO = Image.fromarray(skimage.data.astronaut()[60:188, 100:260])
PIXELS = np.asarray(PHOTO)
GREY = np.asarray(PHOTO.convert("L"))


def apart(source, expected) -> float:
    return float(np.abs(np.asarray(read_image(source)).astype(float) - expected).max())


def tiff(values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


# -- the caller's objects are unchanged


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF"])
def test_a_callers_image_is_not_touched(tmp_path, kind):
    path = tmp_path / f"p.{kind.lower()}"
    photo(size=(1600, 1200)).save(path, kind)
    with Image.open(path) as image:
        place, tiles = image.fp.tell(), list(image.tile)
        assert read_image(image, min_side=100).mode == "RGB"
        assert image.size == (1600, 1200)
        assert kind == "WEBP" or (image.fp.tell(), image.tile) == (place, tiles)  # WebP has no tiles to begin with
        image.load()
        with Image.open(path) as other:
            assert image.tobytes() == other.tobytes()


def test_a_callers_draft_and_frame_are_kept(tmp_path):
    photo(size=(1600, 1200)).save(tmp_path / "p.jpg")
    with Image.open(tmp_path / "p.jpg") as image:
        image.draft(None, (400, 300))
        assert read_image(image, min_side=10).size == image.size == (400, 300)
    colours = [Image.new("RGB", (8, 8), name) for name in ("red", "lime")]
    colours[0].save(tmp_path / "a.gif", save_all=True, append_images=colours[1:])
    with Image.open(tmp_path / "a.gif") as image:
        image.seek(1)
        assert read_image(image).getpixel((0, 0)) == (0, 255, 0)
        assert image.tell() == 1


def test_what_comes_back_is_not_the_callers_own():
    image = photo()
    result = read_image(image)
    result.paste("black", (0, 0, 10, 10))
    assert image.tobytes() == photo().tobytes()
    array = np.array(photo())
    read_image(array).paste("black", (0, 0, 10, 10))
    assert np.array_equal(array, np.asarray(photo()))


def test_streams_are_read_whole_and_put_back():
    content = encode(photo(), "PNG")
    stream = io.BytesIO(content)
    for place in (0, 7, len(content)):
        stream.seek(place)
        assert apart(stream, np.asarray(photo())) == 0
        assert stream.tell() == place
    assert not stream.closed


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_kind_are_one_photo(kind):
    content = kind(encode(photo(), "PNG"))
    assert is_photo(content)
    assert apart(content, np.asarray(photo())) == 0
    with pytest.raises(ImageError, match="empty"):
        read_image(kind(b""))


def test_a_number_is_one_thing_that_is_not_a_photo():
    assert is_photo(3)
    with pytest.raises(ImageError, match="int 3"):
        read_image(3)


def test_streams_that_hold_no_photo(tmp_path):
    (tmp_path / "t.txt").write_text("x")
    with (tmp_path / "t.txt").open() as text, pytest.raises(ImageError, match="open as text"):
        read_image(text)
    with pytest.raises(ImageError, match="empty"):
        read_image(io.BytesIO())
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError):
        read_image(closed)


def test_an_open_file_is_named_by_its_path(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with (tmp_path / "broken.jpg").open("rb") as file, pytest.raises(ImageError, match=r"broken\.jpg"):
        read_image(file)


# -- colour


def expected_srgb(primaries) -> np.ndarray:
    """Closed form: the profile's curve and primaries to XYZ (D50), then sRGB's matrix (Lindbloom) and curve."""
    linear = (PIXELS / 255.0) ** GAMMA
    matrix = np.array(
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )
    rgb = np.clip(linear @ np.array(primaries) @ matrix.T, 0, 1)
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055) * 255


@pytest.mark.parametrize("primaries", [P3, ADOBE])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_profiles_are_converted_to_srgb(primaries, kind):
    content = encode(PHOTO, kind, icc_profile=rgb_profile(primaries))
    assert apart(content, expected_srgb(primaries)) < 1
    assert apart(content, PIXELS) > 10
    assert "icc_profile" not in read_image(content).info


def test_a_profile_of_a_transparent_photo_leaves_its_transparency():
    clear = PHOTO.copy()
    clear.putalpha(Image.fromarray(np.where(np.arange(160) < 80, 255, 0).astype(np.uint8)[None].repeat(128, 0)))
    result = np.asarray(read_image(encode(clear, "PNG", icc_profile=rgb_profile(P3)))).astype(float)
    assert np.abs(result[:, :80] - expected_srgb(P3)[:, :80]).max() < 1
    assert (result[:, 80:] == 255).all()


def test_srgb_itself_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert apart(encode(PHOTO, "PNG", icc_profile=profile), PIXELS) == 0


def test_a_printers_profile_is_followed():
    inks = PHOTO.convert("CMYK")
    expected = ImageCms.profileToProfile(
        inks, ImageCms.ImageCmsProfile(io.BytesIO(cmyk_profile())), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert apart(encode(inks, "TIFF", icc_profile=cmyk_profile()), np.asarray(expected)) == 0


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"nonsense",
        rgb_profile()[:200],
        cmyk_profile(),
        rgb_profile() + b"mpet",
        rgb_profile().ljust(5 * 2**20, b"\0"),
    ],
)
def test_profiles_that_cannot_be_followed_are_ignored(profile):
    assert apart(encode(PHOTO, "TIFF", icc_profile=profile), PIXELS) == 0


def test_thumbnails_are_srgb_without_a_profile():
    import base64

    content = base64.b64decode(
        data_url(read_image(encode(PHOTO, "PNG", icc_profile=rgb_profile())), 64, quality=90).partition(",")[2]
    )
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (64, 51)
        assert "icc_profile" not in image.info


# -- TIFF

DEEP = PIXELS.astype(np.uint16) * 257


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (DEEP, {"photometric": "rgb"}),
        (np.moveaxis(DEEP, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        (np.moveaxis(DEEP, 2, 0), {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}),
        (np.moveaxis(PIXELS, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        (PIXELS.astype(np.float32) / 255, {"photometric": "rgb"}),
        (PIXELS.astype(np.uint32) * 16843009, {"photometric": "rgb"}),
    ],
)
def test_colour_tiffs_keep_their_tones(values, options):
    assert apart(tiff(values, **options), PIXELS) <= 1


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize(
    "values",
    [
        GREY,
        GREY.astype(np.uint16) * 257,
        GREY.astype(np.int16) * 128,
        GREY.astype(np.uint32) * 16843009,
        GREY.astype(np.float16) / 255,
        GREY.astype(np.float32) / 255,
        GREY.astype(np.float64) / 255,
    ],
    ids=lambda values: str(values.dtype),
)
def test_grey_tiffs_keep_their_tones(values, photometric):
    expected = GREY if photometric == "minisblack" else 255 - GREY
    assert apart(tiff(values, photometric=photometric), expected[:, :, None].astype(float)) <= 1


def test_a_deep_tiff_has_its_profile_transparency_and_orientation():
    profile = tiff(PIXELS.astype(np.float32) / 255, photometric="rgb", iccprofile=rgb_profile(P3))
    assert apart(profile, expected_srgb(P3)) <= 1
    alpha = np.dstack([DEEP, np.zeros(GREY.shape, np.uint16)])
    assert (
        np.asarray(read_image(tiff(np.moveaxis(alpha, 2, 0), photometric="rgb", planarconfig="separate"))).min() == 255
    )
    turned = tiff(DEEP[:, :, 0], photometric="miniswhite", extratags=[(274, "H", 1, 6, True)])
    assert read_image(turned).size == PHOTO.size[::-1]


def test_a_tiff_that_cannot_be_read_is_not_called_damaged(monkeypatch):
    content = bytearray(tiff(DEEP[:, :, 0], photometric="miniswhite", compression="zlib"))
    place = content.index(b"\x03\x01\x03\x00\x01\x00\x00\x00\x08\x00")  # Compression: deflate
    content[place + 8 : place + 10] = (5).to_bytes(2, "little")  # LZW, which needs a library that is not installed
    with pytest.raises(ImageError, match="unsupported kind of TIFF") as error:
        read_image(bytes(content))
    assert "damaged" not in str(error.value)
    assert "truncated" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (tiff(np.asarray(PHOTO.convert("YCbCr")), photometric="ycbcr"), "YCBCR"),  # Pillow calls it truncated
        (tiff(PIXELS[:, :, 0].astype(np.complex64), photometric="minisblack"), "MINISBLACK, 1 × 64 bits"),
    ],
)
def test_a_kind_of_tiff_that_is_no_photo_is_named(content, named):
    with pytest.raises(ImageError, match=f"unsupported kind of TIFF .*{named}"):
        read_image(content)


# -- formats that need an extra


def test_heic_is_read_upright():
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    pillow_heif.from_pillow(PHOTO).save(stream, quality=95, chroma=444)
    assert np.abs(np.asarray(read_image(stream)).astype(float) - PIXELS).mean() < 3
    with pytest.raises(ImageError, match="HEIC"):
        read_image(stream.getvalue()[:200])


def test_jpeg_xl_is_read_and_its_size_known_before(monkeypatch):
    pytest.importorskip("pillow_jxl")
    for size in ((1, 1), (64, 40), (40, 64), (300, 200), (257, 33), (9000, 20)):
        for container in (False, True):
            content = encode(Image.new("RGB", size, "navy"), "JXL", use_container=container)
            assert jxl_size(content) == size
    content = encode(PHOTO, "JXL", lossless=True)
    assert apart(content, PIXELS) == 0
    with pytest.raises(ImageError, match="too large"):
        read_image(content, max_pixels=1000)
    with pytest.raises(ImageError):
        read_image(content[:40])


@pytest.mark.parametrize(
    ("name", "head", "extra"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(600), "heif"),
        ("a.jxl", b"\xff\x0a" + bytes(600), "jxl"),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(600), "raw"),
        ("a.dng", tiff(DEEP[:, :, 0], photometric="cfa"), "raw"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name, head, extra):
    for module in ("pillow_heif", "pillow_jxl", "pillow_jxl.JpegXLImagePlugin", "rawpy"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(head)
    for source in (tmp_path / name, head):
        with pytest.raises(ImageError, match=rf"intclip\[{extra}\]"):
            read_image(source)


def test_a_raw_file_without_preview_is_developed():
    pytest.importorskip("rawpy")
    sensor = np.random.default_rng(0).integers(0, 4096, (64, 96), dtype=np.uint16)
    tags = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True), (50706, "B", 4, (1, 4, 0, 0), True)]
    assert read_image(tiff(sensor, photometric="cfa", extratags=tags)).size == (48, 32)


@pytest.mark.parametrize(("flip", "size"), [(0, (160, 128)), (3, (160, 128)), (5, (128, 160)), (6, (128, 160))])
def test_a_raw_files_preview_is_turned_upright(tmp_path, monkeypatch, flip, size):
    from types import SimpleNamespace

    class Raw:
        sizes = SimpleNamespace(flip=flip, raw_width=6000, raw_height=4000)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def extract_thumb(self):
            return SimpleNamespace(format="JPEG", data=encode(PHOTO, "JPEG"))

    fake = SimpleNamespace(
        imread=lambda stream: Raw(), ThumbFormat=SimpleNamespace(JPEG="JPEG"),
        LibRawNoThumbnailError=KeyError, LibRawUnsupportedThumbnailError=KeyError,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "rawpy", fake)
    (tmp_path / "a.nef").write_bytes(b"MM\0*" + bytes(20))
    assert read_image(tmp_path / "a.nef").size == size
    halved = read_image(tmp_path / "a.nef", min_side=64)
    assert (halved.size, whole_size(halved)) == ((size[0] // 2, size[1] // 2), size)


# -- large and truncated photos


def test_a_jpeg_larger_than_the_limit_is_read_at_a_smaller_size(monkeypatch):
    from intclip.data import images

    content = encode(photo(size=(1000, 800)), "JPEG")
    for module in (images, formats):
        monkeypatch.setattr(module, "MAX_PIXELS", 300_000)
        monkeypatch.setattr(module, "MAX_JPEG_PIXELS", 1_200_000)
    assert read_image(content, max_pixels=300_000).size == (500, 400)
    smaller = read_image(content, max_pixels=300_000, min_side=100)
    assert (smaller.size, whole_size(smaller)) == ((125, 100), (500, 400))
    for refused in (encode(photo(size=(1000, 800)), "PNG"), encode(photo(size=(1000, 800)), "JPEG", progressive=True)):
        with pytest.raises(ImageError, match="1000 × 800"):
            read_image(refused, max_pixels=300_000)
    with pytest.raises(ImageError, match="2000 × 1600"):
        read_image(encode(photo(size=(2000, 1600)), "JPEG"), max_pixels=300_000)


@pytest.mark.slow
def test_a_jpeg_of_200_megapixels_is_read():
    content = encode(Image.new("L", (20_000, 10_000), 90), "JPEG")
    assert MAX_PIXELS < 20_000 * 10_000
    image = read_image(content, min_side=448)
    assert image.size == (2500, 1250)
    assert abs(int(image.getpixel((1000, 1000))[0]) - 90) <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_photo_is_read_on_request(kind):
    content = encode(PHOTO, kind)
    cut = content[: len(content) // 2]
    with pytest.raises(ImageError, match="truncated"):
        read_image(cut)
    result = np.asarray(read_image(Lenient(cut))).astype(float)
    assert np.abs(result - PIXELS)[:30].mean() < 6
    with pytest.raises(ImageError, match="truncated"):
        read_image(cut)
    with pytest.raises(ImageError):
        read_image(Lenient(b"no photo at all"))


def test_profiles_are_built_once():
    content = encode(PHOTO, "PNG", icc_profile=rgb_profile(ADOBE))
    read_image(content)
    before = colour._transform.cache_info().misses
    read_image(content)
    assert colour._transform.cache_info().misses == before
