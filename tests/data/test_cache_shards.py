"""Filling a cache together: division of work on one disk and on several, with threads as processes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intclip.data.cache_shards import CacheFolder, Shard, fill, share_out
from intclip.errors import StorageError
from intclip.files import atomic_directory

SHARDS = 24


class Team:
    """Several threads in step."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=300)
        self.results: list = [None] * size
        self.rounds = 0

    def member(self, rank: int) -> "Member":
        return Member(self, rank)


class Member:
    def __init__(self, team: Team, rank: int) -> None:
        self.team, self.rank = team, rank

    def each(self, work):
        try:
            self.team.results[self.rank] = (work(), None)
        except StorageError as error:
            self.team.results[self.rank] = (None, error)
        self.team.barrier.wait()
        outcomes = list(self.team.results)
        self.team.rounds += self.rank == 0
        self.team.barrier.wait()
        for _, error in outcomes:
            if error is not None:
                raise error
        return [outcome for outcome, _ in outcomes]


def shards_in(home: Path) -> list[Shard]:
    return [Shard(home / f"{number:02d}", 0, 4 * number, 4) for number in range(SHARDS)]


def build(shard: Shard, by: int) -> None:
    with atomic_directory(shard.folder) as folder:  # rejects existing folders: no shard is built twice on a disk
        (folder / "shard.json").write_text('{"features": {"x": {}}, "errors": {}}')
        (folder / "x.npy").write_text(str(by))


def fill_by(disks: list[Path], build=build) -> Team:
    """Fill the disk of every process, all at once."""
    team = Team(len(disks))

    def one(rank: int) -> None:
        fill(
            disks[rank],
            {},
            shards_in(disks[rank]),
            lambda shard: build(shard, rank),
            check_room=lambda missing: None,
            how=CacheFolder(disks[rank], workers=1, verify=False, progress=False, crew=team.member(rank)),
        )

    with ThreadPoolExecutor(len(disks)) as pool:
        for done in [pool.submit(one, rank) for rank in range(len(disks))]:
            done.result()
    return team


def builders(disk: Path) -> list[int]:
    return [int((shard.folder / "x.npy").read_text()) for shard in shards_in(disk)]


def test_on_one_disk_each_computes_its_part_in_one_round(tmp_path):
    team = fill_by(3 * [tmp_path])
    assert builders(tmp_path) == [0, 1, 2] * 8
    assert team.rounds == 3  # look, build, look again


@pytest.mark.parametrize("machines", [2, 3])
def test_each_machine_s_disk_is_filled_by_its_own_processes_alike(tmp_path, machines):
    disks = [tmp_path / str(rank // 2) for rank in range(2 * machines)]
    team = fill_by(disks)
    assert team.rounds == 1 + 2 * machines
    for number in range(machines):
        found = builders(tmp_path / str(number))
        assert sorted(set(found)) == [2 * number, 2 * number + 1]
        assert found.count(2 * number) == SHARDS // 2


def test_what_is_there_is_left_alone_and_the_rest_shared(tmp_path):
    for shard in shards_in(tmp_path)[::2]:
        build(shard, 7)
    fill_by(2 * [tmp_path])
    assert builders(tmp_path) == [7, 0, 7, 1] * 6


def test_nobody_is_left_waiting_when_one_fails(tmp_path):
    def breaks(shard: Shard, by: int) -> None:
        if by == 1:
            raise StorageError("full")
        build(shard, by)

    with pytest.raises(StorageError, match="full"):
        fill_by(2 * [tmp_path], breaks)
    assert len(list(tmp_path.glob("*/shard.json"))) == SHARDS // 2
    fill_by([tmp_path])
    assert len(builders(tmp_path)) == SHARDS


def test_no_room_is_told_before_anything_is_built(tmp_path):
    def no_room(missing) -> None:
        raise StorageError(f"{len(missing)} are too many")

    with pytest.raises(StorageError, match=r"\b24\b"):
        fill(
            tmp_path / "cache",
            {},
            shards_in(tmp_path / "cache"),
            lambda shard: build(shard, 0),
            check_room=no_room,
            how=CacheFolder(tmp_path, workers=1, verify=False, progress=False),
        )
    assert not (tmp_path / "cache").exists()


LACKS = st.lists(st.sets(st.integers(0, 30)), min_size=1, max_size=6)


@given(LACKS, st.randoms(use_true_random=False))
def test_shares_are_a_partition_and_even(lacks, rng):
    photos = {name: rng.randint(1, 9) for name in range(31)}
    told = [{str(name): photos[name] for name in sorted(lack)} for lack in lacks]
    shares = share_out(told)
    assert sorted(name for share in shares for name in share) == sorted({str(name) for lack in lacks for name in lack})
    for share, lack in zip(shares, told, strict=True):
        assert set(share) <= lack.keys()
    if all(lack == lacks[0] for lack in lacks):
        loads = [sum(photos[int(name)] for name in share) for share in shares]
        assert max(loads) - min(loads) <= max((photos[name] for name in lacks[0]), default=0)
