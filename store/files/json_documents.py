"""Formatting and validated parsing of a store's JSON documents (manifests, listings)."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import FormatError

Model = TypeVar("Model", bound=BaseModel)


def format_document(fields: dict[str, Any]) -> bytes:
    """Format a document as UTF-8 JSON with one field per line, and one line for each entry of a list of objects."""
    lines = []
    for name, value in fields.items():
        text = json.dumps(value, allow_nan=False)
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join("  " + json.dumps(row, allow_nan=False) for row in value) + "\n ]"
        lines.append(f" {json.dumps(name)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def parse_document(model: type[Model], data: bytes, name: str) -> Model:
    """Parse JSON bytes into a pydantic model.

    Raises
    ------
    FormatError
        The bytes are not JSON or do not fit the model. The message names the first problem.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole file"
        raise FormatError(
            f"{name} cannot be read: {field}: {first['msg']}. It was not written by this version of headatlas, "
            "or it is damaged."
        ) from None
