"""Standard error away and back."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from unipercept.pipelines.quiet import quiet_stderr


def test_two_threads_at_once_leave_standard_error_as_it_was():
    before = os.fstat(2).st_ino
    entered, first_left = Barrier(2), Barrier(2)

    def first() -> None:
        with quiet_stderr():
            entered.wait()
        first_left.wait()

    def second() -> None:
        with quiet_stderr():
            entered.wait()
            first_left.wait()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result()
    assert os.fstat(2).st_ino == before
