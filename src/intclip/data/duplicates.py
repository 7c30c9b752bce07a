"""Which photos look the same: 128-bit perceptual hashes, and groups of those that are near."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NEAR_BITS = 4
"""Photos whose perceptual hashes differ in at most so many bits count as the same picture."""

_INFORMATIVE = 20  # set bits; a hash with fewer, as of a blank page or a small drawing on white, says little


def perceptual_hash(image: Image.Image) -> tuple[int, int]:
    """128 bits that survive resizing and recompression: where brightness rises to the right, and where downwards."""
    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX), dtype=np.int16)
    right, down = grey[:8, 1:] > grey[:8, :-1], grey[1:, :8] > grey[:-1, :8]
    return int.from_bytes(np.packbits(right).tobytes(), "big"), int.from_bytes(np.packbits(down).tobytes(), "big")


def near_groups(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """A number for each photo's group; photos of one group look the same.

    Near hashes link photos into groups, so that a group may hold photos that differ in more bits than two neighbours
    do. A photo whose hash says too little is alone.

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
    """Pairs (i < j) of rows of (N, 2) hashes that differ in at most so many bits, some of them twice.

    The 128 bits are cut into bands. Hashes that differ in few bits agree in at least one band, so that only those that
    agree in a band are compared: the work grows with the number of likely pairs and not with the square of the photos.
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
