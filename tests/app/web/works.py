"""Work that tests send to workers: it has to be importable there."""

import ctypes
import os
import time

from unipercept.app.web.job import Job
from unipercept.app.web.perceive_drawing import analyse_json
from unipercept.errors import InputError


def answer(job: Job) -> tuple[int, str]:
    job.tell(0.5, "half", news="a curve")
    time.sleep(0.2)
    return os.getpid(), str(job.folder)


def mistake(job: Job) -> None:
    raise InputError("the <b>file</b>\nis bad")


def bug(job: Job) -> None:
    raise RuntimeError("secret path /root")


def on_and_on(job: Job) -> None:
    while True:
        job.tell(0.1, "on and on")
        time.sleep(0.01)


def hang(job: Job) -> None:
    """As a decoder that never ends does: nothing of Python's reaches it."""
    job.tell(0.1, "hanging")
    ctypes.PyDLL(None).sleep(600)  # holding the lock of the interpreter


def crash(job: Job) -> None:
    """As a decoder that writes where it must not does."""
    job.tell(0.1, "crashing")
    time.sleep(0.2)
    os.abort()


def analyse_or_hang(path, modality, model, job):
    if path.name.startswith("stuck"):
        hang(job)
    return analyse_json(path, modality, model, job)


def predict_with_a_year(wanted, job, *, year, **given):
    """As the tab's own, with a climatology of a year that is there already."""
    from unipercept.app.web import weather_work
    from unipercept.app.web.weather_drawing import predict_json

    def generated(path, start, days, *rest):
        assert (path.name, days) == ("year.zarr", weather_work.CLIMATE_DAYS)
        return year

    before, weather_work.generated = weather_work.generated, generated
    try:
        return predict_json(wanted, job, **given)
    finally:
        weather_work.generated = before


def swell(job: Job) -> None:
    """As a small file does that unpacks to a large table."""
    held = []
    while True:
        held.append(bytearray(b"\1" * 10**8))
        job.tell(0.1, f"{len(held)} times 100 MB")
        time.sleep(0.01)
