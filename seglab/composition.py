"""Finds conf/, seglab's and the user's, and defines what its files may call in `${...}`."""

import os
import tempfile
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import ListConfig, OmegaConf

from seglab.core.files import expand_user

_INSTALLED = Path(__file__).parent / "conf"
# In a checkout conf/ lies beside the package; a wheel holds it as seglab.conf.
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "conf"


class UserConfigs(SearchPathPlugin):
    """Lets Hydra look into conf/ of the working directory before it looks into seglab's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds the folder, if there is one, to the search path of a program that uses seglab's."""
        folder = Path("conf").absolute()
        is_ours = any(element.path == str(CONF) for element in search_path.get_path())
        if is_ours and folder.is_dir() and not folder.samefile(CONF):
            search_path.prepend("conf/", str(folder), anchor=SearchPathQuery(provider="main"))


Plugins.instance().register(UserConfigs)

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
