"""Counts, scores and boundary distances in NumPy, and torchmetrics classes that use them."""
