"""Signals are listened to in the main thread, and nowhere else."""

import signal
from concurrent.futures import ThreadPoolExecutor

from mm_lightning.inference.chat import ending_by_ctrl_c
from mm_lightning.signals import listen, restore


def test_in_the_main_thread_and_back():
    seen = []
    before = signal.getsignal(signal.SIGUSR1)
    handlers = listen([signal.SIGUSR1], lambda number, frame: seen.append(number))
    signal.raise_signal(signal.SIGUSR1)
    restore(handlers)
    assert seen == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_in_another_thread_they_stay_as_they_are():
    before = signal.getsignal(signal.SIGINT)

    def talk() -> bool:
        with ending_by_ctrl_c(lambda: None):
            return signal.getsignal(signal.SIGINT) is before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(talk).result()
        assert pool.submit(listen, [signal.SIGINT], print).result() == {}
    assert signal.getsignal(signal.SIGINT) is before
