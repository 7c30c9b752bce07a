import threading

import pytest

from intclip.training.source import one_ahead


def test_order_is_kept_and_one_job_runs_ahead():
    started: list[int] = []
    ahead = threading.Event()

    def job(number):
        started.append(number)
        if number == 1:
            ahead.set()
        return 10 * number

    stream = one_ahead(lambda number=number: job(number) for number in range(5))
    assert started == []
    assert next(stream) == 0
    assert ahead.wait(60)  # while the reader has the first, the second is computed
    assert 2 not in started
    assert list(stream) == [10, 20, 30, 40]
    assert started == [0, 1, 2, 3, 4]
    assert list(one_ahead([])) == []
    assert list(one_ahead([lambda: 7])) == [7]


def test_an_error_arrives_where_its_result_would():
    def bad():
        raise KeyError("lost")

    stream = one_ahead([lambda: 1, bad, lambda: 3])
    assert next(stream) == 1
    with pytest.raises(KeyError, match="lost"):
        next(stream)


def test_leaving_early_stops_the_thread():
    stream = one_ahead(lambda number=number: number for number in range(100))
    before = threading.active_count()
    assert next(stream) == 0
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
