"""Read the size of a JPEG XL file from its header, which its decoder cannot do without decoding."""

SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")

_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_WIDTHS = (9, 13, 18, 30)


def jxl_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels (ISO/IEC 18181-1, SizeHeader); None if the header is incomplete."""
    start = _codestream(content)
    if start is None or len(content) < start + 12:
        return None
    bits = int.from_bytes(content[start + 2 : start + 12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take(_WIDTHS[take(2)])

    height = side()
    if ratio := take(3):
        across, down = _RATIOS[ratio]
        return height * across // down, height
    return side(), height


def _codestream(content: bytes) -> int | None:
    """Find the start of the codestream, which may be inside a box."""
    if content.startswith(SIGNATURES[0]):
        return 0
    place = 0
    while place + 16 <= len(content):
        size, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        header = 8
        if size == 1:
            size, header = int.from_bytes(content[place + 8 : place + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            start = place + header + (4 if kind == b"jxlp" else 0)
            return start if content[start : start + 2] == SIGNATURES[0] else None
        if size < header:  # 0 reaches to the end of the file
            return None
        place += size
    return None
