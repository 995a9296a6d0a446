"""A signal ends a command as an interrupt, whatever Python or a library makes of the exception on its way."""

import importlib
import os
import signal
import sys
import time

import pytest

from cnnfilterdb.cli.signals import Interrupted, ending_soon

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")


@pytest.fixture(autouse=True)
def heard():
    """A shell's background job, as the tests may be, ignores SIGINT, and so would the command."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def inside_the_name_of_a_field(send):
    """Python makes it a RuntimeError."""

    class Field:
        def __set_name__(self, owner, name):
            send()

    class Owner:
        field = Field()

    return Owner


def replaced_while_it_is_handled(send):
    try:
        send()
    finally:
        raise OSError("tidying up failed")


def made_an_error_of_its_own(send):
    try:
        send()
    except BaseException as error:
        raise ValueError("cannot be read") from error


def inside_a_destructor(send):
    """Python prints it and goes on."""

    class Held:
        def __del__(self):
            send()

    Held()
    time.sleep(30)


def test_an_import_is_finished_first(tmp_path, monkeypatch):
    (tmp_path / "half_way.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.1)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def work():
        importlib.import_module("half_way")
        time.sleep(30)

    with pytest.raises(Interrupted), ending_soon("the process would be ended"):
        work()
    assert sys.modules["half_way"].whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "work",
    [inside_the_name_of_a_field, replaced_while_it_is_handled, made_an_error_of_its_own, inside_a_destructor],
    ids=lambda work: work.__name__,
)
def test_an_interrupt_stays_one(number, work):
    with pytest.raises(Interrupted) as caught, ending_soon("the process would be ended"):
        work(lambda: os.kill(os.getpid(), number))
    assert caught.value.number == number


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="of its own"), ending_soon("the process would be ended"):
        raise RuntimeError("of its own") from ValueError()


def test_errors_that_are_each_others_cause_are_left_alone():
    first, second = ValueError("first"), OSError("second")
    first.__cause__, second.__context__ = second, first
    with pytest.raises(ValueError, match="first"), ending_soon("the process would be ended"):
        raise first
