"""Drawn dermoscopy cases in PH2's layout."""

from seglab.data.synthetic.cases import synthetic_cases

__all__ = ["synthetic_cases"]
