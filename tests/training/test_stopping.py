"""Graceful stopping by signals and by a time limit."""

import signal

import pytest

from multipath_jax.utils import stopping as stopping_lib
from multipath_jax.utils.stopping import Stopping


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_a_wish_and_the_second_interrupts(capfd, number, status):
    before = {one: signal.getsignal(one) for one in stopping_lib.SIGNALS}
    with Stopping() as stopping:
        assert (stopping(), stopping.signal, stopping.exit_status) == (False, None, 0)
        signal.raise_signal(number)
        assert (stopping(), stopping.signal, stopping.exit_status) == (True, number, status)
        assert "a second signal interrupts at once" in capfd.readouterr().err
        assert not stopping.budget_spent
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stopping.signal == number
    assert {one: signal.getsignal(one) for one in stopping_lib.SIGNALS} == before


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="of the body"), Stopping():
        raise OSError("of the body")
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_minutes_begin_when_it_is_made(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(stopping_lib.time, "monotonic", lambda: clock[0])
    stopping = Stopping(minutes=2.0)
    clock[0] += 119.9
    assert (stopping(), stopping.budget_spent) == (False, False)
    clock[0] += 0.1
    assert (stopping(), stopping.budget_spent) == (True, True)
    assert (stopping.signal, stopping.exit_status) == (None, 0)
