"""Lightning callbacks."""

from seglab.training.callbacks.pictures import Pictures
from seglab.training.callbacks.profile import Profile
from seglab.training.callbacks.progress import Progress
from seglab.training.callbacks.watch_test import WatchTest

__all__ = ["Pictures", "Profile", "Progress", "WatchTest"]
