"""Colour profiles (ICC.1) with known colours, for tests and fuzzing: Display P3, Adobe RGB, a CMYK printer."""

import struct
from itertools import product

P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
"""XYZ of red, green and blue in Display P3, adapted to D50."""
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""The same in Adobe RGB (1998)."""
GAMMA = 563 / 256
"""Gamma of the curves, the closest representable value to 2.2."""
_D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(primaries: tuple[tuple[float, float, float], ...] = P3) -> bytes:
    """Make the profile of a display with these primaries, white D50 and curves of `GAMMA`."""
    curve = b"curv" + struct.pack(">IIHH", 0, 1, 563, 0)
    tags = {f"{name}XYZ".encode(): _xyz(colour) for name, colour in zip("rgb", primaries, strict=True)}
    tags |= {f"{name}TRC".encode(): curve for name in "rgb"}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | {b"wtpt": _xyz(_D50)})


def cmyk_profile() -> bytes:
    """Make the profile of a printer whose inks reduce lightness, by a table of the 16 full mixtures."""
    ramp = bytes(range(256))
    table = bytearray()
    for cyan, magenta, yellow, black in product((0, 1), repeat=4):
        light = max(0.0, 1 - 0.3 * cyan - 0.3 * magenta - 0.1 * yellow) * (1 - black)
        table += bytes([round(255 * light), 128 - 40 * cyan + 60 * magenta, 128 - 40 * cyan + 70 * yellow])
    unit = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    lut = b"mft1" + struct.pack(">I4B", 0, 4, 3, 2, 0) + unit + 4 * ramp + bytes(table) + 3 * ramp
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut, b"wtpt": _xyz(_D50)})


def _xyz(colour: tuple[float, float, float]) -> bytes:
    return b"XYZ " + struct.pack(">Iiii", 0, *(round(65536 * value) for value in colour))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    size = start + len(content)
    date = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    white = struct.pack(">3i", *(round(65536 * value) for value in _D50))
    head = struct.pack(">I4xI", size, 0x02400000) + kind + space + connection + date + b"acsp" + bytes(28) + white
    return head + bytes(128 - len(head)) + table + content
