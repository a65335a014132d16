"""Runs a function over many files in threads, with a progress bar."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")


def map_in_threads(
    function: Callable[[T], R],
    items: Sequence[T],
    description: str,
    unit: str,
    workers: int | None = None,
) -> Generator[R, None, None]:
    """Yields `function(item)` for each item, in order; `workers` at a time, by default one a core.

    Hashing, decoding and filtering release the interpreter's lock, so threads suffice. The first
    exception cancels the calls that have not begun and is raised.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            results = pool.map(function, items)
            yield from tqdm(results, description, len(items), unit=unit, disable=None, leave=False)
        finally:
            pool.shutdown(cancel_futures=True)
