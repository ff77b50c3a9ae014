"""The model section of a job file."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DType = Literal["float32", "bfloat16", "float16", "auto"]


class ModelConfig(BaseModel):
    """The model that runs, and the device and precision it runs with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """Hub name, folder, ``package:NAME/path`` or GGUF file."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")
    """Name of the store folder in a job of several models; by default derived from the end of `source`."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    dtype: DType = "float32"
    """Data type of the weights. Attention scores are always float32."""
    device: str = "auto"
    """Device; ``auto`` selects CUDA if available, otherwise the CPU."""
    local_only: bool = False
    """True if only local files may be used, without access to the hub."""

    @property
    def short_name(self) -> str:
        """`name`, or the last component of `source`; a last folder called ``model`` is skipped."""
        if self.name is not None:
            return self.name
        parts = [part for part in re.split(r"[/\\:]", self.source) if part.strip(".~") not in ("", "package", "gguf")]
        names = [part for part in parts if part.lower() != "model"] or parts or ["model"]
        return re.sub(r"[^\w.-]", "_", re.sub(r"(?i)\.gguf$", "", names[-1]))[:64]
