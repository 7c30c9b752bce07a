"""Any external data is parsed or rejected with a one-line error."""

import time

import pytest
from benchmarks.fuzz_targets import PARSERS, attempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SLOW = 5.0
"""Maximum seconds per input; all inputs are small."""


@st.composite
def damaged(draw, name: str) -> bytes:
    """A valid input with changed bytes, inserted tokens or pieces of other inputs, or truncated."""
    seeds = PARSERS[name].seeds()
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(("change", "cut", "put", "word", "repeat", "end")))
        if kind == "change" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 40))]
        elif kind == "put":
            data[place:place] = draw(st.binary(max_size=20))
        elif kind == "word" and PARSERS[name].words:
            data[place:place] = draw(st.sampled_from(PARSERS[name].words))
        elif kind == "repeat":
            piece = bytes(data[place : place + 30])
            data[place:place] = piece * draw(st.integers(1, 200))
        elif kind == "end":
            del data[place:]
    return bytes(data)


@pytest.mark.parametrize("name", PARSERS)
def test_sound_inputs_are_read(tmp_path, name):
    for seed in PARSERS[name].seeds():
        assert attempt(PARSERS[name], seed, tmp_path)


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_inputs_are_read_or_refused(tmp_path, name):
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.one_of(damaged(name), st.binary(max_size=200)))
    def check(data: bytes) -> None:
        start = time.process_time()
        attempt(PARSERS[name], data, tmp_path)
        assert time.process_time() - start < SLOW

    check()
