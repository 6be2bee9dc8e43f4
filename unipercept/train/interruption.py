"""Ctrl-C and the scheduler's SIGTERM wait for the end of a step, so that a valid checkpoint can be written first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether somebody asked the run to stop."""

    received: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; a second one does not wait."""
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def leave(self) -> None:
        """End the run as the signal would have.

        Raises:
            SystemExit: with 143 after SIGTERM, as shells report it.
            KeyboardInterrupt: after Ctrl-C, here or in another of the processes.
        """
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextmanager
def deferred_signals() -> Iterator[Interruption]:
    """Inside the block the signals are only noted.

    Outside the main thread Python has no handlers, so nothing changes.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    previous = {number: signal.signal(number, interruption.handle) for number in _SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
