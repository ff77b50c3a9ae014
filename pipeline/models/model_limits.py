"""Limits on the memory and time that the files of a model folder can cost before their content is compared.

A configuration of a few bytes can ask for layers without end, and a tokenizer of a few bytes can make a thousand
characters of one. The limits follow from the size of the weight files, and from the normalizer's own rules.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headatlas.store.errors import ConfigError

MAX_COUNT = 1_000_000
"""Largest number of layers, experts, labels and the like in a configuration."""
MAX_PARTS = 200_000
"""Largest number of modules, parameters and buffers of a model."""
MAX_BUFFER_ELEMENTS = 1 << 30
MAX_EDGE = 8192
"""Largest height and width of an image in pixels."""
MAX_GROWTH = 1_000
"""Largest number of characters that a normalizer may make of one. The one of T5 makes 18."""
MAX_WORD_CHARS = 1_000
"""Longest word that WordPiece may compare with its vocabulary, in characters; the time grows with the square. Usual: 100."""
_COUNT_KEY = re.compile(r"(num|n)_|.*(layer|depth|block|stage|expert|label|head)")


def check_counts(config: dict[str, Any], name: str) -> None:
    """Check the counts of a configuration, which its class may expand to lists before any weight is read.

    Raises
    ------
    ConfigError
        A count exceeds `MAX_COUNT`.
    """
    for key, value in json_values(config):
        if isinstance(value, int | float) and value > MAX_COUNT and _COUNT_KEY.match(key) and "position" not in key:
            raise ConfigError(f"{name}: {key} is {value:.6g}; expected at most {MAX_COUNT}")


def check_image_sizes(settings: dict[str, Any], name: str) -> None:
    """Check the size in pixels to which an image processor scales, crops or pads every image.

    Raises
    ------
    ConfigError
        An edge exceeds `MAX_EDGE`.
    """
    for key, value in json_values(settings):
        if (
            isinstance(value, int | float)
            and value > MAX_EDGE
            and re.fullmatch(r".*(height|width|edge|size|crop|pad).*", key)
        ):
            raise ConfigError(f"{name}: {key} is {value:.6g}; expected at most {MAX_EDGE} pixels")


def json_values(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every text, number and truth value of a JSON object, with the nearest key above it."""
    pending: list[tuple[str, Any]] = [("", content)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending.extend((str(k), v) for k, v in value.items())
        elif isinstance(value, list):
            pending.extend((key, v) for v in value)
        else:
            yield key, value


@contextmanager
def bounded_construction(weight_bytes: int) -> Iterator[None]:
    """Stop the construction of a model that is much larger than its weight files, as soon as it is.

    Raises
    ------
    ConfigError
        The model has more parameters than two for each byte of the files, more than `MAX_PARTS` parts, or larger
        buffers than `MAX_BUFFER_ELEMENTS`.
    """
    from torch.nn.modules import module as torch_module

    limits = {"parameters": 2 * weight_bytes + (1 << 26), "buffers": MAX_BUFFER_ELEMENTS}
    n_elements = dict.fromkeys(limits, 0)
    n_parts = 0

    def count(kind: str | None, value: Any) -> None:
        nonlocal n_parts
        n_parts += 1
        if kind is not None and value is not None:
            n_elements[kind] += value.numel()
            if n_elements[kind] > limits[kind]:
                raise ConfigError(
                    f"its configuration asks for {n_elements[kind]:.3g} numbers in {kind}; expected at most "
                    f"{limits[kind]:.3g}, by the {weight_bytes} bytes of its weight files"
                )
        if n_parts > MAX_PARTS:
            raise ConfigError(f"its configuration asks for more than {MAX_PARTS} modules and parameters")

    hooks = [
        torch_module.register_module_module_registration_hook(lambda _module, _name, child: count(None, child)),
        torch_module.register_module_parameter_registration_hook(lambda _module, _name, p: count("parameters", p)),
        torch_module.register_module_buffer_registration_hook(lambda _module, _name, b: count("buffers", b)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_normalizer(normalizer: Any, name: str) -> int:
    """Return the largest number of characters that a normalizer, as in tokenizer.json, can make of one.

    Raises
    ------
    ConfigError
        It exceeds `MAX_GROWTH`.
    """
    growth = _growth(normalizer)
    if growth > MAX_GROWTH:
        raise ConfigError(
            f"{name}: its tokenizer can make {growth:.3g} characters of one; expected at most {MAX_GROWTH}"
        )
    return growth


def check_word_length(model: Any, name: str) -> None:
    """Check the longest word of a WordPiece model, as in tokenizer.json.

    Raises
    ------
    ConfigError
        It exceeds `MAX_WORD_CHARS`.
    """
    longest = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if isinstance(longest, int | float) and longest > MAX_WORD_CHARS:
        raise ConfigError(
            f"{name}: max_input_chars_per_word of its tokenizer is {longest:.6g}; expected at most {MAX_WORD_CHARS}"
        )


def _growth(rule: Any) -> int:
    if not isinstance(rule, dict):
        return 1
    match rule.get("type"):
        case "Sequence":
            growth = 1
            for part in rule.get("normalizers") or ():
                growth = min(growth * _growth(part), 1 << 62)
            return growth
        case "Replace":
            content, pattern = len(str(rule.get("content", ""))), rule.get("pattern")
            if isinstance(pattern, dict) and isinstance(text := pattern.get("String"), str) and text:
                return max(1, -(-content // len(text)))
            return 1 + content  # an expression may match between any two characters
        case "Prepend":
            return 1 + len(str(rule.get("prepend", "")))
        case "Precompiled":
            return _charsmap_growth(str(rule.get("precompiled_charsmap") or ""))
        case "NFD" | "NFKD" | "NFC" | "NFKC" | "Nmt" | "BertNormalizer":
            return _UNICODE_GROWTH
        case "Lowercase":
            return 2
        case "ByteLevel":
            return 4
        case _:
            return 1


_UNICODE_GROWTH = len(unicodedata.normalize("NFKD", "\ufdfa"))
"""Characters of the longest decomposition in Unicode."""


def _charsmap_growth(charsmap: str) -> int:
    """Return the longest replacement of a map of SentencePiece: the size of a trie, the trie, texts ended by zeros."""
    try:
        data = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return 1  # refused when it is loaded
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(1, *(len(text) for text in texts.decode("utf-8", "replace").split("\0")))


def normalizer_of(tokenizer: Any) -> Any:
    """Return the normalizer of a loaded tokenizer, as in tokenizer.json; None if it has none or no fast version."""
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    return None if normalizer is None else json.loads(normalizer.__getstate__())
