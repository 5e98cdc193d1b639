"""The ring buffer in shared memory, with the writer and the reader in one process."""

import pickle
import threading
from contextlib import closing

import numpy as np
import pytest

from multipath_jax.data import ring as ring_lib
from multipath_jax.data.ring import Ring
from multipath_jax.errors import UserError


def test_what_one_writes_the_other_takes():
    with closing(Ring((2, 3), blocks=2)) as ring:
        other = pickle.loads(pickle.dumps(ring))
        for number in range(5):
            other.free(number)[...] = number
            np.testing.assert_array_equal(ring.take(number), np.full((2, 3), number, np.uint8))
        other._memory.close()


def test_a_block_is_free_when_the_batch_before_it_was_taken():
    with closing(Ring((1,), blocks=2)) as ring:
        for number in (0, 1):
            ring.free(number)[...] = number
        waiting = threading.Thread(target=lambda: ring.free(2).fill(2))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        assert ring.take(0) == 0
        waiting.join(10)
        assert not waiting.is_alive()
        assert (ring.take(1), ring.take(2)) == (1, 2)


def test_nobody_waits_for_a_run_that_has_ended():
    with closing(Ring((1,), blocks=1)) as ring:
        waiting = threading.Thread(target=ring.free, args=(7,))
        waiting.start()
        ring.end()
        waiting.join(10)
        assert not waiting.is_alive()


def test_too_little_shared_memory_is_said_beforehand(monkeypatch):
    monkeypatch.setattr(ring_lib.os.path, "isdir", lambda _: True)
    usage = ring_lib.shutil._ntuple_diskusage(64_000_000, 0, 64_000_000)
    monkeypatch.setattr(ring_lib.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        UserError, match=r"200 MB of shared memory, but /dev/shm has 64 MB free; use"
    ):
        Ring((100_000_000,), blocks=2)
