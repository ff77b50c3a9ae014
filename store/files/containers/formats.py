"""Registry of the containers."""

from __future__ import annotations

from ...errors import ConfigError
from .container import Container
from .hdf5_segment import Hdf5Container
from .zarr_segment import ZarrContainer

_CONTAINERS: dict[str, Container] = {"zarr": ZarrContainer(), "hdf5": Hdf5Container()}


def container_of(name: str) -> Container:
    """Return the container of that name.

    Raises
    ------
    ConfigError
        There is no such container.
    """
    if name not in _CONTAINERS:
        raise ConfigError(f"unknown container {name!r}; expected one of {', '.join(_CONTAINERS)}.")
    return _CONTAINERS[name]
