"""A request to stop is remembered, and nothing else happens."""

import os
import signal

import pytest

from mmalign.training.signals import EXIT_HUNG, EXIT_STOPPED, StopRequest

ASKING = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_is_remembered_by_name(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number.name


def test_the_first_signal_counts() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.requested == "SIGUSR1"


def test_a_second_interrupt_stops_at_once() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_old_handlers_come_back_after_an_error_too() -> None:
    before = [signal.getsignal(number) for number in ASKING]
    with pytest.raises(ZeroDivisionError), StopRequest():
        assert [signal.getsignal(number) for number in ASKING] != before
        _ = 1 / 0
    assert [signal.getsignal(number) for number in ASKING] == before


def test_the_codes_are_those_that_launchers_know() -> None:
    assert (EXIT_STOPPED, EXIT_HUNG) == (os.EX_TEMPFAIL, 76)
