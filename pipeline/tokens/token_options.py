"""The tokens and generate sections of a job file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TooLong = Literal["truncate", "windows", "whole"]
PROMPT_COLUMN = "prompt_end"
"""Annotation of a continued prompt: the number of characters of the prompt."""


class TokensConfig(BaseModel):
    """The tokens section: how text becomes tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int | None = Field(default=None, gt=0)
    """Length limit of sequences and windows; by default the limit of the model."""
    too_long: TooLong = "truncate"
    """Treatment of a longer text: ``truncate`` keeps its beginning, ``windows`` cuts it into several examples, ``whole``
    skips it and records the reason."""
    stride: int | None = Field(default=None, gt=0)
    """Distance between the first tokens of consecutive windows; by default windows do not overlap."""
    special: bool = True
    """True if the tokenizer adds its special tokens."""

    @model_validator(mode="after")
    def _stride_of_windows(self) -> TokensConfig:
        if self.stride is not None and self.too_long != "windows":
            raise ValueError(f'stride is for windows, but too_long is "{self.too_long}"; set too_long = "windows"')
        return self


class GenerateConfig(BaseModel):
    """The generate section: text that the model generates after each example, or as its target, before capture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=0, ge=0)
    """Largest number of tokens to generate for an example; 0 generates none."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 is greedy search."""
    seed: int = Field(default=0, ge=0)
    """The random seed of the sampling."""
