"""Lightning callbacks."""

from seglab.training.callbacks.exponential_average import ExponentialAverage
from seglab.training.callbacks.log_test_loss import LogTestLoss
from seglab.training.callbacks.pictures import Pictures
from seglab.training.callbacks.progress import Progress

__all__ = ["ExponentialAverage", "LogTestLoss", "Pictures", "Progress"]
