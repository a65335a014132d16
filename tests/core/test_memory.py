"""What the allocator does with freed memory, by the page faults of a process of its own."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from seglab.core.memory import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
for _ in range(16):  # glibc comes to rest after some
    np.ones(2**24, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    np.ones(2**24, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again() -> None:
    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", FAULTS, *arguments]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # 64 MiB, eight times: a fault for each page of 4 KiB, or 2 MiB at most where pages are huge.
    assert faults() >= 8 * 32
    assert faults("keep") < 32
