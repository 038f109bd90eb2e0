"""How a run is asked to stop: once to checkpoint and leave, twice to leave at once."""

import os
import signal
import threading

import pytest

from worldloom_dist.run.signals import StopFlag, stop_on_signals


@pytest.fixture(autouse=True)
def _hears_its_terminal():
    """The program that started the tests may have told them to ignore it."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


def test_a_terminal_that_ends_asks_as_sigterm_does_and_may_say_so_twice():
    former = signal.getsignal(signal.SIGHUP)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.is_set
        assert stop.reason == "SIGHUP"
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGHUP) is former


def test_a_run_that_ignores_its_terminal_goes_on():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_on_signals() as stop:
            stop.listen()
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_batch_system_that_warns_asks_for_another_start_and_its_limit_leaves_time():
    former = signal.getsignal(signal.SIGUSR1)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.is_set
        assert stop.asks_again
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # at the time limit
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGUSR1) is former


def test_a_run_that_a_person_stops_asks_for_no_other_start():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not stop.asks_again


def test_in_another_thread_nobody_listens():
    flag = StopFlag()
    former = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=flag.listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is former
    assert not flag.is_set
