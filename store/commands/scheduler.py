"""The option `--scheduler`: the workers of a dask cluster replace threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..queries.search_plan import Client


@contextmanager
def cluster(address: str | None) -> Iterator[Client | None]:
    """Connect to the dask scheduler at `address`; None without an address.

    Raises
    ------
    ConfigError
        `distributed` is not installed, or no scheduler answers at the address.
    """
    if address is None:
        yield None
        return
    try:
        from dask.distributed import Client
    except ImportError:
        raise ConfigError("--scheduler needs the package distributed: pip install 'headatlas[distributed]'") from None
    try:
        client = Client(address, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"no dask scheduler answers at {address} ({error}); start one with `dask scheduler`"
        ) from None
    with client:
        yield client
