"""seglab: lesion segmentation experiments on PH2 that can be trusted."""

__version__ = "0.1.0"
