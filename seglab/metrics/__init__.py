"""Counts and scores in NumPy, boundary distances, and torchmetrics classes over them."""
