"""Units of work: the same results in the same order wherever they run, and lost ones are run again."""

from __future__ import annotations

import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import closing
from importlib import import_module
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from cnnfilterdb.core.errors import RemoteError, SelectionError, WorkerLostError
from cnnfilterdb.core.resources import runner_of
from cnnfilterdb.core.runners import TRIES, Given, Processes, Serial, Threads
from cnnfilterdb.core.workers import limited, threads


def results(runner, function, units, **options):
    return [(unit, future.result()) for unit, future in runner.run(function, units, **options)]


def square(number: int) -> int:
    return number * number


def blas_threads(_: object = None) -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


class Unreliable(Executor):
    """Runs units in threads, and fails, loses or repeats some of them at random, never the same one too often."""

    def __init__(self, seed: int, faults: int = TRIES - 1) -> None:
        self._random, self._faults = Random(seed), faults
        self._pool = ThreadPoolExecutor(3)
        self._suffered: dict[object, int] = {}
        self.runs: list[object] = []

    def submit(self, function, unit):
        fault = self._random.choice(["none", "fails", "network", "lost before", "lost after", "cancelled", "repeated"])
        if self._suffered.get(unit, 0) >= self._faults:
            fault = "none"
        if fault not in ("none", "repeated"):
            self._suffered[unit] = self._suffered.get(unit, 0) + 1
        if fault == "cancelled":
            future: Future = Future()
            future.cancel()
            return future
        return self._pool.submit(self._run, function, unit, fault, self._random.random() / 500)

    def _run(self, function, unit, fault, seconds):
        time.sleep(seconds)
        if fault == "lost before":
            raise BrokenExecutor("the node is gone")
        for _ in range(1 + (fault == "repeated")):
            self.runs.append(unit)
            result = function(unit)
        if fault == "lost after":
            raise BrokenExecutor("the node is gone")
        if fault == "fails":
            raise ConnectionResetError("reset")
        if fault == "network":
            raise RemoteError("bucket: unreachable; try again")
        return result


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 25), window=st.integers(1, 6), ordered=st.booleans())
def test_an_executor_that_fails_loses_and_repeats_units_changes_nothing(seed, count, window, ordered):
    import cnnfilterdb.core.runners as runners

    executor = Unreliable(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runners, "_PAUSE", 0.0005)
        found = results(Given(executor), square, range(count), window=window, ordered=ordered)
    assert (found if ordered else sorted(found)) == [(number, number**2) for number in range(count)]
    assert set(executor.runs) == set(range(count))


def test_a_unit_that_is_always_lost_fails_alone(monkeypatch):
    monkeypatch.setattr("cnnfilterdb.core.runners._PAUSE", 0.0)

    class Loses(Executor):
        def submit(self, work, unit):
            future: Future = Future()
            if unit == 2:
                future.set_exception(BrokenExecutor("killed"))
            else:
                future.set_result(work(unit))
            return future

    outcomes = {unit: future.exception() for unit, future in Given(Loses()).run(square, range(5))}
    assert [unit for unit, error in outcomes.items() if error] == [2]
    assert isinstance(outcomes[2], WorkerLostError)
    assert "lost 4 times" in str(outcomes[2])


@pytest.mark.parametrize("runner", [Serial(), Threads(3), Given(ThreadPoolExecutor(2))], ids=lambda one: one.name)
def test_results_come_in_order_with_bounded_work_in_flight(runner):
    started: list[int] = []

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return -number

    def units():
        for number in range(30):
            started.append(number)
            yield number

    consumed = 0
    for unit, future in runner.run(work, units(), window=4):
        assert unit == consumed
        assert future.result() == -consumed
        consumed += 1
        assert len(started) <= consumed + 5
    assert consumed == 30


def test_weights_bound_what_is_in_flight():
    flying: list[int] = []
    most = 0

    def units():
        for number in range(40):
            yield 10 + number % 7

    def work(weight: int) -> int:
        nonlocal most
        flying.append(weight)
        most = max(most, sum(flying))
        time.sleep(0.001)
        flying.remove(weight)
        return weight

    found = results(Threads(8), work, units(), weight=lambda weight: weight, budget=40, window=16)
    assert [weight for weight, _ in found] == list(units())
    assert most <= 40
    # One that is too large is admitted alone.
    assert results(Threads(2), square, [100, 1], weight=lambda weight: weight, budget=10) == [(100, 10000), (1, 1)]


def test_an_error_of_the_work_is_not_retried():
    calls: list[int] = []

    def fail(number: int) -> int:
        calls.append(number)
        raise ValueError("wrong")

    ((_, future),) = Threads(2).run(fail, [7])
    assert str(future.exception()) == "wrong"
    assert calls == [7]


def test_what_was_not_started_is_cancelled_when_the_consumer_stops():
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.01)
        return number

    runs = Threads(2).run(work, range(1000), window=4)
    next(runs)
    runs.close()
    seen = len(started)
    time.sleep(0.05)
    assert len(started) == seen <= 6


UNITS = """
import os, signal
from cnnfilterdb.core.workers import threads

def once(unit):
    folder, number = unit
    mark = os.path.join(folder, str(number))
    if number % 3 == 0 and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return number + 100

def deadly(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number

def processors(_):
    return threads()
"""


def test_processes_survive_killed_workers_and_name_the_unit_that_kills_them(tmp_path, monkeypatch):
    monkeypatch.setattr("cnnfilterdb.core.runners._PAUSE", 0.0)
    (tmp_path / "units_of_a_test.py").write_text(UNITS)
    monkeypatch.syspath_prepend(tmp_path)  # workers have the path of their parent
    units = import_module("units_of_a_test")
    runner = Processes(2)
    try:
        found = results(runner, units.once, [(str(tmp_path), number) for number in range(5)])
        assert [result for _, result in found] == [100, 101, 102, 103, 104]
        outcomes = {unit: future.exception() for unit, future in runner.run(units.deadly, range(4))}
        assert {unit for unit, error in outcomes.items() if error} == {1}
        assert isinstance(outcomes[1], WorkerLostError)
        assert results(runner, units.processors, range(2)) == [(0, 1), (1, 1)]
    finally:
        runner.stop(now=True)


def test_an_executor_that_is_broken_and_not_ours_is_named():

    class Broken(Executor):
        def submit(self, *args):
            raise BrokenExecutor("gone")

    with pytest.raises(WorkerLostError, match=r"runner Broken: it is broken \(gone\); make a new executor"):
        list(Given(Broken()).run(square, [1]))


def test_jobs_of_other_libraries_are_awaited():
    class Job:
        def __init__(self, value):
            self._value = value

        def result(self):
            time.sleep(0.01)
            if self._value == 9:
                raise ValueError("nine")
            return self._value

    class Cluster:
        def submit(self, function, unit):
            return Job(function(unit))

    outcomes = [future for _, future in runner_of(Cluster(), 2).run(square, [2, 3])]
    assert outcomes[0].result() == 4
    assert str(outcomes[1].exception()) == "nine"


@pytest.mark.parametrize("wrong", ["thread", 5, "ray:/x", object()])
def test_unknown_runners(wrong):
    with pytest.raises(SelectionError, match="expected serial, threads, processes, ray"):
        runner_of(wrong, 2)


def test_threads_have_the_limits_of_the_block_that_submits_to_them():
    with limited(1):
        assert results(Threads(2), lambda _: threads(), range(3)) == [(number, 1) for number in range(3)]


def test_threads_run_a_unit_once_where_it_must_not_be_repeated():
    calls = []

    def fail(unit):
        calls.append(unit)
        raise ConnectionError(f"unit {unit}")

    errors = [future.exception() for _, future in Threads(2, repeats=False).run(fail, range(3))]
    assert [str(error) for error in errors] == ["unit 0", "unit 1", "unit 2"]
    assert sorted(calls) == [0, 1, 2]


def test_a_limit_of_threads_ends_with_its_block():
    before = threads()
    with limited(1):
        assert threads() == 1
    assert threads() == before


def test_linear_algebra_starts_no_threads_beside_those_of_the_runner(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with threadpool_limits(3, user_api="blas"):
        assert results(Threads(2), blas_threads, range(4)) == [(unit, {1}) for unit in range(4)]
        with closing(Threads(2).run(blas_threads, range(9))) as units:  # and is left early
            assert next(units)[1].result() == {1}
        assert blas_threads() == {3}
    processes = Processes(1)
    units = ["__import__('numpy').__name__", "__import__('threadpoolctl').threadpool_info()"]
    _, (_, found) = results(processes, eval, units)
    processes.stop()
    assert {library["num_threads"] for library in found if library["user_api"] == "blas"} == {1}
