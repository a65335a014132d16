"""Command lines of scripts/."""

import os

# How long threads of OpenMP (GNU's) wait for each other before they give up their core; read when
# torch is imported. By default so long that two threads on one free core take 30 times as long.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
