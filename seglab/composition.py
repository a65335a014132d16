"""Finds conf/, and defines what its files may call in `${...}`."""

import os
import tempfile
from pathlib import Path

from omegaconf import ListConfig, OmegaConf

from seglab.core.files import expand_user

_INSTALLED = Path(__file__).parent / "conf"
# In a checkout conf/ lies beside the package; a wheel holds it as seglab.conf.
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "conf"

# In files under conf/: how many channels of logits a network gives. What is no list is refused
# later, in seglab's words.
OmegaConf.register_new_resolver(
    "len", lambda value: len(value) if isinstance(value, ListConfig) else None, replace=True
)


def default_cache_dir() -> str:
    """Returns SEGLAB_CACHE, or a folder in the home, or without one among temporary files."""
    home = expand_user("~")
    has_home = home.is_absolute() and home.is_dir() and os.access(home, os.W_OK)
    caches = home / ".cache" if has_home else Path(tempfile.gettempdir())
    return os.environ.get("SEGLAB_CACHE") or str(caches / "seglab")


OmegaConf.register_new_resolver("default_cache_dir", default_cache_dir, replace=True)
