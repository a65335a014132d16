"""seglab: lesion segmentation experiments on PH2 that can be trusted."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":  # it lacks the signals and locks that runs rely on
    sys.exit("seglab runs on Linux and macOS; on Windows, install it within WSL2: wsl --install")

__version__ = "0.1.0"
__all__ = ["compose", "load_model", "load_results", "train"]

if TYPE_CHECKING:
    from seglab.analysis.results import load_results
    from seglab.cli.compose import compose
    from seglab.inference.models import load_model
    from seglab.training.train import train
else:
    # Imported when they are used. A module of such a name would take the function's place.
    _MODULES = {
        "compose": "seglab.cli.compose",
        "load_model": "seglab.inference.models",
        "load_results": "seglab.analysis.results",
        "train": "seglab.training.train",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'seglab' has no attribute '{name}'")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
