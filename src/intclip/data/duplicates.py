"""Near duplicates by 128-bit perceptual hashes."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NEAR_BITS = 4
"""Maximum number of differing hash bits of near duplicates."""

_INFORMATIVE = 20  # set bits; hashes with fewer, such as of a blank page, are not informative


def perceptual_hash(image: Image.Image) -> tuple[int, int]:
    """Hash a photo to 128 bits that survive resizing and recompression: signs of horizontal and vertical gradients."""
    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX), dtype=np.int16)
    right, down = grey[:8, 1:] > grey[:8, :-1], grey[1:, :8] > grey[:-1, :8]
    return int.from_bytes(np.packbits(right).tobytes(), "big"), int.from_bytes(np.packbits(down).tobytes(), "big")


def near_groups(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Number the groups of near duplicates.

    Groups are connected components, so photos of a group may differ in more bits than linked pairs
    do. Photos with uninformative hashes are alone.

    Args:
        hashes: (N, 2) perceptual hashes.

    Returns:
        (N,) numbers of groups, in no order.
    """
    groups = np.arange(len(hashes), dtype=np.int64)
    rows = np.flatnonzero(np.bitwise_count(hashes).sum(axis=1) >= _INFORMATIVE)
    if len(rows):
        unique, inverse = np.unique(hashes[rows], axis=0, return_inverse=True)
        pairs = np.array(list(near_pairs(unique, NEAR_BITS)), dtype=np.int64).reshape(-1, 2)
        links = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(len(unique),) * 2)
        _, components = connected_components(links, directed=False)
        groups[rows] = len(hashes) + components[inverse]
    return groups


def near_pairs(hashes: npt.NDArray[np.uint64], bits: int) -> Iterator[tuple[int, int]]:
    """Yield pairs (i < j) of rows of (N, 2) hashes that differ in few bits, some of them twice.

    The 128 bits are divided into bands. Hashes that differ in few bits agree in at least
    one band, so only hashes that agree in a band are compared, which avoids comparing all pairs.
    """
    flags = np.unpackbits(hashes.astype(">u8").view(np.uint8), axis=1)
    for band in np.array_split(flags, bits + 1, axis=1):
        _, groups = np.unique(np.packbits(band, axis=1), axis=0, return_inverse=True)
        order = np.argsort(groups, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            for place in range(len(members) - 1):
                distance = np.bitwise_count(hashes[members[place]] ^ hashes[members[place + 1 :]]).sum(axis=1)
                for other in np.flatnonzero(distance <= bits):
                    yield int(members[place]), int(members[place + 1 + other])
