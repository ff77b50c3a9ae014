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
    """A hub name, a folder, ``package:NAME/path`` or a GGUF file."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")
    """In a job of several models the folder of its store; by default from the end of `source`."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    dtype: DType = "float32"
    """Of the weights; scores are float32 always."""
    device: str = "auto"
    """``auto`` takes CUDA where there is any."""
    local_only: bool = False
    """Never ask the hub."""

    @property
    def short_name(self) -> str:
        """`name`, or the end of `source` that says most: of a path its last folder, ``model`` excepted."""
        if self.name is not None:
            return self.name
        parts = [part for part in re.split(r"[/\\:]", self.source) if part.strip(".~") not in ("", "package", "gguf")]
        names = [part for part in parts if part.lower() != "model"] or parts or ["model"]
        return re.sub(r"[^\w.-]", "_", re.sub(r"(?i)\.gguf$", "", names[-1]))[:64]
