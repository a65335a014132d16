"""Runs a function over many files in threads, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def map_in_threads(
    function: Callable[..., T], arguments: Iterable[tuple], description: str, unit: str
) -> list[T]:
    """Calls `function(*arguments)` for each tuple and returns the results in order.

    Hashing, decoding and filtering release the interpreter's lock, so threads suffice. The first
    exception cancels the calls that have not begun and is raised.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(function, *args) for args in arguments]
        bar = tqdm(jobs, description, unit=unit, disable=None, leave=False)
        try:
            return [job.result() for job in bar]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
