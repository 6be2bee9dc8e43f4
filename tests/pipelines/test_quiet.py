"""Readers in C are silenced in several threads at once, and standard error is there again afterwards."""

import os
import threading

from unipercept.pipelines.quiet import quiet_stderr


def test_threads_that_overlap_leave_standard_error_as_it_was(capfd):
    entered, left = threading.Barrier(2), threading.Event()

    def outlasts() -> None:
        with quiet_stderr():
            entered.wait()
            left.wait()
            os.write(2, b"noise of the second")

    thread = threading.Thread(target=outlasts)
    with quiet_stderr():
        thread.start()
        entered.wait()
        os.write(2, b"noise of the first")
    os.write(2, b"noise between")  # the other is still inside
    left.set()
    thread.join()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
