"""The views as calls: BertViz's arguments on bare tensors, or an example of a store or a trace.

Each makes one offline document (`export.View`). Tensors are taken by their methods, so no model library is imported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from headatlas.store.errors import ConfigError, NotFoundError, ShapeError
from headatlas.store.reading.example import Example
from headatlas.store.schema.traces import Site

from .export import Kind, View, make_view
from .frames.view_frames import TokensFrame, tokens_frame
from .frames.whole_example import PartFrame, example_part, neuron_part, part_frame, vectors_facts
from .theme.colours import Theme
from .theme.token_labels import label, visible

Action = Literal["view", "return"]
DisplayMode = Literal["auto"] | Theme
_SPECIAL = re.compile(
    r"\[(CLS|SEP|PAD|UNK|MASK|BOS|EOS|unused\d+)\]|</?(s|pad|unk|mask|cls|sep|bos|eos|extra_id_\d+|(start|end)_of_\w+)>|<\|[^|<>]*\|>"
)
_HOW = (
    'Load the model with AutoModel.from_pretrained(..., attn_implementation="eager") and call it with output_attentions=True, '
    "or let headatlas.pipeline.trace(model, tokenizer, text) capture it with any implementation."
)


def head_view(
    attention: Any = None,
    tokens: Sequence[str] | None = None,
    sentence_b_start: int | None = None,
    prettify_tokens: bool = True,
    layer: int | None = None,
    heads: Sequence[int] | None = None,
    encoder_attention: Any = None,
    decoder_attention: Any = None,
    cross_attention: Any = None,
    encoder_tokens: Sequence[str] | None = None,
    decoder_tokens: Sequence[str] | None = None,
    include_layers: Sequence[int] | None = None,
    html_action: Action = "view",
    *,
    site: str | None = None,
    display_mode: DisplayMode = "auto",
    height: int = 640,
) -> View | None:
    """Show lines from each token to what it attends to, for any heads.

    Parameters
    ----------
    attention
        One array of shape [1, head, query, key] a layer (torch or numpy, list or tuple), or one array of all layers;
        or an example of a store or of `headatlas.pipeline.trace`, which brings its own tokens.
    sentence_b_start
        Index of the second sentence's first token; the view then offers A → A, A → B and so on.
    prettify_tokens
        Write tokenizer marks (``Ġ``, ``▁``, ``##``) as people read them.
    layer, heads
        What is shown at first: the layer (the first by default) and heads of it (all by default).
    include_layers
        Layers to put into the document; all by default.
    html_action
        ``"view"`` shows it in the notebook, ``"return"`` returns the `View`, to save or show later.
    site
        Of an example: one of its attentions (encoder, decoder, cross); all by default.

    Raises
    ------
    ConfigError
        There is no attention, or arguments contradict each other.
    ShapeError
        Attention and tokens do not fit together.
    """
    named = _Named(encoder_attention, decoder_attention, cross_attention, encoder_tokens, decoder_tokens)
    parts, text = _read(attention, tokens, named, sentence_b_start, prettify_tokens, include_layers, site)
    state = {"selected": _chosen(parts[0], layer, heads), "hide_special": text is not None}
    return _act("head", text or "Head view", parts, state, html_action, display_mode, height)


def model_view(
    attention: Any = None,
    tokens: Sequence[str] | None = None,
    sentence_b_start: int | None = None,
    prettify_tokens: bool = True,
    display_mode: DisplayMode = "auto",
    encoder_attention: Any = None,
    decoder_attention: Any = None,
    cross_attention: Any = None,
    encoder_tokens: Sequence[str] | None = None,
    decoder_tokens: Sequence[str] | None = None,
    include_layers: Sequence[int] | None = None,
    include_heads: Sequence[int] | None = None,
    html_action: Action = "view",
    *,
    site: str | None = None,
    height: int = 720,
) -> View | None:
    """Show every head as a small map, one of them large.

    Parameters and errors as in `head_view`; `include_heads` leaves other heads out.
    """
    named = _Named(encoder_attention, decoder_attention, cross_attention, encoder_tokens, decoder_tokens)
    parts, text = _read(attention, tokens, named, sentence_b_start, prettify_tokens, include_layers, site)
    if include_heads is not None:
        parts = [_some_heads(part, include_heads) for part in parts]
    state = {"selected": _name(parts[0], 0, 0), "hide_special": text is not None}
    return _act("model", text or "Model view", parts, state, html_action, display_mode, height)


def neuron_view(
    example: Example,
    layer: int = 0,
    head: int = 0,
    *,
    query: int | None = None,
    site: str | None = None,
    include_layers: Sequence[int] | None = None,
    html_action: Action = "view",
    display_mode: DisplayMode = "auto",
    height: int = 640,
) -> View | None:
    """Show why a token attends where it does: query, keys, their product by dimension, score and attention.

    Parameters
    ----------
    example
        An example of a store, or ``headatlas.pipeline.trace(model, tokenizer, text)``.
    layer, head, query
        What is shown at first; without `query` the first token that is not special.
    include_layers
        Layers to put into the document; all by default.

    Raises
    ------
    NotFoundError
        The store kept no query and key, or has no such layer or head.
    """
    if not isinstance(example, Example):
        raise ConfigError(
            f"neuron_view takes an example, not {type(example).__name__}. Take one of a store (open_store(path).examples[0]) or "
            "headatlas.pipeline.trace(model, tokenizer, text): attention alone does not hold queries and keys."
        )
    found = _sites(example, site)[0]
    parts = [neuron_part(example, found, _layers(include_layers, found.n_layers))]
    selected = _chosen(parts[0], layer, [head])
    if query is not None and not 0 <= query < parts[0]["shape"][2]:
        raise NotFoundError(f"query {query} is outside 0:{parts[0]['shape'][2]}.")
    state = {"selected": selected, "hide_special": True, "pin": "" if query is None else f"q{query}"}
    return _act(
        "neuron", example.text, parts, state, html_action, display_mode, height, facts=vectors_facts(parts[0], found)
    )


class _Named:
    """Attention of an encoder–decoder as BertViz names it."""

    def __init__(self, encoder: Any, decoder: Any, cross: Any, encoder_tokens: Any, decoder_tokens: Any) -> None:
        self.given = {"encoder": encoder, "decoder": decoder, "cross": cross}
        self.given = {name: value for name, value in self.given.items() if value is not None}
        self.tokens = {"encoder_tokens": encoder_tokens, "decoder_tokens": decoder_tokens}


def _read(
    attention: Any,
    tokens: Sequence[str] | None,
    named: _Named,
    sentence_b_start: int | None,
    prettify: bool,
    include_layers: Sequence[int] | None,
    site: str | None,
) -> tuple[list[PartFrame], str | None]:
    """What a call was given as parts; and the text, where it was an example."""
    if not isinstance(attention, Example):
        return _tensor_parts(attention, tokens, named, sentence_b_start, prettify, include_layers), None
    found = _sites(attention, site)
    return [example_part(attention, one, _layers(include_layers, one.n_layers)) for one in found], attention.text


def _tensor_parts(
    attention: Any,
    tokens: Sequence[str] | None,
    named: _Named,
    sentence_b_start: int | None,
    prettify: bool,
    include_layers: Sequence[int] | None,
) -> list[PartFrame]:
    if attention is not None:
        if named.given:
            raise ConfigError(
                f"attention and {next(iter(named.given))}_attention are both given; pass attention for one text, "
                "or encoder_attention, decoder_attention, cross_attention for an encoder–decoder."
            )
        if tokens is None:
            raise ConfigError(
                "tokens are missing; pass tokenizer.convert_ids_to_tokens(input_ids[0]), one for each position."
            )
        maps, layers = stack_layers(attention, "attention", include_layers)
        side = read_tokens(tokens, prettify)
        return [part_frame(maps, side, layers=layers, causal=_is_causal(maps), sentence_b_start=sentence_b_start)]
    if not named.given:
        raise ConfigError(f"no attention is given. {_HOW}")
    if sentence_b_start is not None:
        raise ConfigError("sentence_b_start is for attention within one text; leave it out with an encoder–decoder.")
    sides: dict[str, TokensFrame] = {}
    for site in named.given:
        for name in {"encoder": ["encoder"], "decoder": ["decoder"], "cross": ["decoder", "encoder"]}[site]:
            given = named.tokens[f"{name}_tokens"]
            if given is None:
                raise ConfigError(f"{site}_attention is given without {name}_tokens; pass both.")
            sides[name] = read_tokens(given, prettify)
    parts = []
    for site, value in named.given.items():
        maps, layers = stack_layers(value, f"{site}_attention", include_layers)
        queries, keys = (sides["decoder"], sides["encoder"]) if site == "cross" else (sides[site], None)
        causal = site != "cross" and _is_causal(maps)
        parts.append(part_frame(maps, queries, keys, label=site.capitalize(), layers=layers, causal=causal))
    return parts


def stack_layers(
    attention: Any, name: str, include_layers: Sequence[int] | None = None
) -> tuple[Float[np.ndarray, "layer head query_pos key_pos"], list[int]]:
    """What a model returns as `attentions`, as one float32 array, and the numbers of its layers.

    Raises
    ------
    ConfigError
        It is empty, as with SDPA, or holds no attention weights.
    ShapeError
        A layer is not [1, head, query, key], or layers differ.
    """
    given = list(attention)
    if not given or any(layer is None for layer in given):
        raise ConfigError(f"{name} is empty: the model ran with SDPA or flash attention, which return none. {_HOW}")
    layers = _layers(include_layers, len(given))
    maps = [_one_layer(given[layer], f"{name}[{layer}]") for layer in layers]
    shapes = {array.shape for array in maps}
    if len(shapes) > 1:
        raise ShapeError(f"the layers of {name} have different shapes {sorted(shapes)}; one shape is expected.")
    return np.stack(maps), layers


def _one_layer(value: Any, name: str) -> Float[np.ndarray, "head query_pos key_pos"]:
    if hasattr(value, "detach"):  # a torch tensor, in any type and on any device
        value = value.detach().cpu().float().numpy()
    array = np.asarray(value, dtype=np.float32)
    if array.size == 0:
        raise ConfigError(f"{name} is empty, shape {array.shape}. {_HOW}")
    if array.ndim == 4 and array.shape[0] != 1:
        raise ShapeError(
            f"{name} has a batch of {array.shape[0]}; expected one example. Pass tuple(layer[:1] for layer in attention)."
        )
    array = array[0] if array.ndim == 4 else array
    if array.ndim != 3:
        raise ShapeError(f"{name} has shape {array.shape}; expected [1, head, query, key].")
    if not (np.isfinite(array).all() and array.min() >= -1e-3 and array.max() <= 1.01):
        raise ConfigError(
            f"{name} holds values from {array.min():.3g} to {array.max():.3g}; attention weights lie between 0 and 1. "
            "Pass outputs.attentions, not scores or hidden states."
        )
    return array


def read_tokens(tokens: Sequence[str], prettify: bool = True) -> TokensFrame:
    """Tokens as a tokenizer spells them, made readable; special ones are told by their brackets."""
    given = [str(token) for token in tokens]
    special = [_SPECIAL.fullmatch(token) is not None for token in given]
    if not prettify:
        return tokens_frame([visible(token) for token in given], special, given)
    starts = next((mark for mark in "Ġ▁" if any(token.startswith(mark) for token in given)), None)
    labels = []
    for index, (token, is_special) in enumerate(zip(given, special, strict=True)):
        if is_special:
            labels.append(label(token, special=True))
            continue
        continues = token.startswith("##") and len(token) > 2
        text = token[2:] if continues else token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
        if starts is not None:
            inner = index > 0 and not special[index - 1] and not token.startswith((starts, "Ċ"))
            continues = inner and text[:1].isalnum()
        labels.append(label(text.removesuffix("</w>"), continuation=continues))
    return tokens_frame(labels, special, given)


def _is_causal(maps: Float[np.ndarray, "layer head query_pos key_pos"]) -> bool:
    n, m = maps.shape[2:]
    return n == m > 1 and not np.triu(maps, 1).any()


def _sites(example: Example, name: str | None) -> list[Site]:
    spec = example.segment.spec
    return list(spec.sites) if name is None else [spec.site(name)]


def _layers(wanted: Sequence[int] | None, n_layers: int) -> list[int]:
    if wanted is None:
        return list(range(n_layers))
    layers = [int(layer) for layer in wanted]
    if not layers or len(set(layers)) != len(layers) or not all(0 <= layer < n_layers for layer in layers):
        raise ConfigError(f"include_layers is {layers}; expected different numbers from 0 to {n_layers - 1}.")
    return layers


def _chosen(part: PartFrame, layer: int | None, heads: Sequence[int] | None) -> str:
    layers, columns = part["layers"], part["columns"]
    first = layers[0] if layer is None else int(layer)
    if first not in layers:
        raise NotFoundError(f"layer {first} is not here; there are {', '.join(map(str, layers))}.")
    chosen = columns if heads is None else [int(head) for head in heads]
    if not chosen or any(head not in columns for head in chosen):
        raise NotFoundError(f"heads {chosen} are not all here; layer {first} has {columns[0]} to {columns[-1]}.")
    return ",".join(f"{first}.{head}" for head in chosen)


def _name(part: PartFrame, row: int, column: int) -> str:
    return f"{part['layers'][row]}.{part['columns'][column]}"


def _some_heads(part: PartFrame, heads: Sequence[int]) -> PartFrame:
    chosen = [int(head) for head in heads]
    n_heads = part["shape"][1]
    if not chosen or not all(0 <= head < n_heads for head in chosen):
        raise ConfigError(f"include_heads is {chosen}; expected numbers from 0 to {n_heads - 1}.")
    n_layers, _, n_queries, n_keys = part["shape"]
    assert part["attention"] is not None
    maps = part["attention"].reshape(part["shape"])[:, chosen]
    return {
        **part,
        "attention": np.ascontiguousarray(maps),
        "columns": chosen,
        "shape": [n_layers, len(chosen), n_queries, n_keys],
    }


def _act(
    kind: Kind,
    title: str,
    parts: list[PartFrame],
    state: dict[str, Any],
    action: str,
    mode: str,
    height: int,
    facts: Any = (),
) -> View | None:
    if action not in ("view", "return"):
        raise ConfigError(f'html_action is {action!r}; expected "view" or "return".')
    if mode not in ("auto", "light", "dark"):
        raise ConfigError(f'display_mode is {mode!r}; expected "auto", "light" or "dark".')
    view = make_view(kind, title, parts, state, facts=facts, theme=mode, height=height)
    if action == "return":
        return view
    try:
        from IPython.display import display
    except ImportError:
        raise ConfigError(
            'html_action="view" needs a notebook, and IPython is not installed; take html_action="return" and call save("view.html").'
        ) from None
    display(view)
    return None
