"""Views as functions for notebooks. They take BertViz's arguments on bare tensors, or an example of a store or a trace.

Each function makes one offline document (`export.View`). It reads tensors through their methods, so this module imports
no model library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from headatlas.store.errors import ConfigError, NotFoundError
from headatlas.store.reading.example import Example
from headatlas.store.schema.traces import Site

from .export import Kind, View, make_view
from .frames.model_attention import WAYS_TO_GET_ATTENTION, attentions_of, is_generated, layer_numbers, stack_layers
from .frames.view_frames import TokensFrame, tokens_frame
from .frames.whole_example import PartFrame, example_part, neuron_part, part_frame, vectors_facts
from .theme.colours import Theme
from .theme.token_labels import piece_labels, visible
from .theme.token_pieces import spell_bytes

Action = Literal["view", "return"]
DisplayMode = Literal["auto"] | Theme
_BERTVIZ = frozenset({"model", "model_type", "tokenizer", "sentence_a", "sentence_b"})
"""Arguments of BertViz's `neuron_view.show` that `neuron_view` lacks."""
_SPECIAL = re.compile(
    r"\[(CLS|SEP|PAD|UNK|MASK|BOS|EOS|unused\d+)\]|</?(s|pad|unk|mask|cls|sep|bos|eos|extra_id_\d+|(start|end)_of_\w+)>|<\|[^|<>]*\|>"
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
    """Show lines from each token to the tokens that it attends to, for any heads.

    Parameters
    ----------
    attention
        One array of shape [1, head, query, key] per layer (torch or numpy, list or tuple), or one array of all layers;
        or the output of a model or of its `generate`, with `output_attentions=True`; or an example of a store or of
        `headatlas.pipeline.trace`, which has its own tokens.
    tokens
        The tokenizer's pieces, ``tokenizer.convert_ids_to_tokens(ids)``. The last token that `generate` wrote has no
        row, because the model did not read it; the view says so and leaves it out.
    sentence_b_start
        Index of the second sentence's first token. The view then offers A → A, A → B and so on.
    prettify_tokens
        Show pieces as people read them: without the marks ``Ġ``, ``▁``, ``##``, and ``Ã©`` as ``é``.
    layer, heads
        Layer and heads that are shown first; by default the first layer and all its heads.
    include_layers
        Layers to put into the document; all by default.
    html_action
        ``"view"`` shows the view in the notebook; ``"return"`` returns the `View`, to save or show later.
    site
        One of the attentions of an example (encoder, decoder, cross); all by default.

    Raises
    ------
    ConfigError
        There is no attention, or arguments contradict each other.
    ShapeError
        The lengths of attention and tokens differ.
    """
    seq2seq = _EncoderDecoder(encoder_attention, decoder_attention, cross_attention, encoder_tokens, decoder_tokens)
    parts, text = _read_parts(attention, tokens, seq2seq, sentence_b_start, prettify_tokens, include_layers, site)
    state = {"selected": _head_names(parts[0], layer, heads), "hide_special": text is not None}
    return _show_or_return("head", text or "Head view", parts, state, html_action, display_mode, height)


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
    """Show every head as a small map, and one of them enlarged.

    Parameters and errors are those of `head_view`. `include_heads` names the heads to show; all by default.
    """
    seq2seq = _EncoderDecoder(encoder_attention, decoder_attention, cross_attention, encoder_tokens, decoder_tokens)
    parts, text = _read_parts(attention, tokens, seq2seq, sentence_b_start, prettify_tokens, include_layers, site)
    if include_heads is not None:
        parts = [_some_heads(part, include_heads) for part in parts]
    state = {"selected": _head_name(parts[0], 0, 0), "hide_special": text is not None}
    return _show_or_return("model", text or "Model view", parts, state, html_action, display_mode, height)


def neuron_view(
    example: Any = None,
    *arguments: Any,
    layer: int | None = None,
    head: int = 0,
    query: int | None = None,
    site: str | None = None,
    include_layers: Sequence[int] | None = None,
    html_action: Action = "view",
    display_mode: DisplayMode = "auto",
    height: int = 640,
    **others: Any,
) -> View | None:
    """Show how one row of attention comes about: query, keys, their product by dimension, scores and attention.

    The arguments of BertViz's ``neuron_view.show`` (a model, its type, a tokenizer, sentences) raise an error that
    names the call to use: the viewer runs no models.

    Parameters
    ----------
    example
        An example of a store, or ``headatlas.pipeline.trace(model, tokenizer, text)``.
    arguments
        `layer` and `head`, if they are not named.
    layer, head, query
        Row that is shown first, by default of the first layer and of the first token that is not special.
    include_layers
        Layers to put into the document; all by default.

    Raises
    ------
    ConfigError
        The first argument is no example.
    NotFoundError
        The store holds no query and key, or has no such layer, head or query.
    """
    if unknown := others.keys() - _BERTVIZ:
        raise TypeError(f"neuron_view() got an unexpected keyword argument {min(unknown)!r}")
    if others or len(arguments) > 2 or any(not isinstance(value, int | None) for value in arguments):
        texts = "sentence_a, sentence_b" if len(arguments) > 3 or others.get("sentence_b") else "sentence_a"
        raise ConfigError(
            "neuron_view takes an example, not the model and the sentences of BertViz's show. Run the model first: "
            f"neuron_view(headatlas.pipeline.trace(model, tokenizer, {texts}), layer=2, head=5)."
        )
    if not isinstance(example, Example):
        raise ConfigError(
            f"neuron_view takes an example, not {type(example).__name__}: attention alone does not hold queries and keys. "
            "Pass an example of a store, open_store(path).examples[0], or headatlas.pipeline.trace(model, tokenizer, text)."
        )
    layer = arguments[0] if arguments else layer
    head = arguments[1] if len(arguments) > 1 else head
    first_site = _sites(example, site)[0]
    parts = [neuron_part(example, first_site, layer_numbers(include_layers, first_site.layers))]
    selected = _head_names(parts[0], layer, [head])
    n_queries = parts[0]["shape"][2]
    if query is not None and not 0 <= query < n_queries:
        raise NotFoundError(f"query is {query}; expected a number from 0 to {n_queries - 1}.")
    state = {"selected": selected, "hide_special": True, "pin": "" if query is None else f"q{query}"}
    facts = vectors_facts(parts[0], first_site)
    return _show_or_return("neuron", example.text, parts, state, html_action, display_mode, height, facts=facts)


class _EncoderDecoder:
    """Attention and tokens of an encoder–decoder, from the arguments that BertViz has for them."""

    def __init__(self, encoder: Any, decoder: Any, cross: Any, encoder_tokens: Any, decoder_tokens: Any) -> None:
        attentions = {"encoder": encoder, "decoder": decoder, "cross": cross}
        self.attentions = {name: value for name, value in attentions.items() if value is not None}
        self.tokens = {"encoder_tokens": encoder_tokens, "decoder_tokens": decoder_tokens}


def _read_parts(
    attention: Any,
    tokens: Sequence[str] | None,
    seq2seq: _EncoderDecoder,
    sentence_b_start: int | None,
    prettify: bool,
    include_layers: Sequence[int] | None,
    site: str | None,
) -> tuple[list[PartFrame], str | None]:
    """Return the parts that the arguments of a view hold, and the text if `attention` is an example, else None."""
    if not isinstance(attention, Example):
        return _tensor_parts(attention, tokens, seq2seq, sentence_b_start, prettify, include_layers), None
    sites = _sites(attention, site)
    return [example_part(attention, s, layer_numbers(include_layers, s.layers)) for s in sites], attention.text


def _tensor_parts(
    attention: Any,
    tokens: Sequence[str] | None,
    seq2seq: _EncoderDecoder,
    sentence_b_start: int | None,
    prettify: bool,
    include_layers: Sequence[int] | None,
) -> list[PartFrame]:
    attentions = seq2seq.attentions
    if attention is not None:
        if attentions:
            raise ConfigError(
                f"attention and {next(iter(attentions))}_attention are both given; pass attention for one text, "
                "or encoder_attention, decoder_attention, cross_attention for an encoder–decoder."
            )
        attentions = attentions_of(attention)
    if not attentions:
        raise ConfigError(f"no attention is given. {WAYS_TO_GET_ATTENTION}")
    if "" in attentions and tokens is None:
        raise ConfigError(
            "tokens are missing; expected one per position. Pass tokenizer.convert_ids_to_tokens(input_ids[0])."
        )
    if sentence_b_start is not None and "" not in attentions:
        raise ConfigError("sentence_b_start is for attention within one text; omit it for an encoder–decoder.")
    parts = []
    for site, value in attentions.items():
        names = ("decoder", "encoder") if site == "cross" else (site, site)
        spellings = [tokens if not name else seq2seq.tokens[f"{name}_tokens"] for name in names]
        for name, side in zip(names, spellings, strict=True):
            if side is None:
                raise ConfigError(f"{site}_attention is given without {name}_tokens; pass both.")
        maps, layers = stack_layers(value, f"{site}_attention".removeprefix("_"), include_layers)
        queries, note = list(spellings[0] or ()), ""
        if is_generated(value) and len(queries) == maps.shape[2] + 1:
            note = f"without {visible(str(queries.pop()))}, which the model wrote but did not read"
        keys = read_tokens(spellings[1] or (), prettify) if site == "cross" else None
        causal = site != "cross" and _is_causal(maps)
        parts.append(
            part_frame(
                maps, read_tokens(queries, prettify), keys, label=site.capitalize(), layers=layers, causal=causal,
                sentence_b_start=sentence_b_start, note=note,
            )
        )  # fmt: skip
    return parts


def read_tokens(tokens: Sequence[str], prettify: bool = True) -> TokensFrame:
    """Make readable labels of a tokenizer's spellings. The brackets of a token tell whether it is special."""
    spellings = [str(token) for token in tokens]
    special = [_SPECIAL.fullmatch(token) is not None for token in spellings]
    labels = piece_labels(spellings, special) if prettify else [visible(token) for token in spellings]
    return tokens_frame(labels, special, spell_bytes(spellings, special) if prettify else spellings)


def _is_causal(maps: Float[np.ndarray, "layer head query_pos key_pos"]) -> bool:
    n, m = maps.shape[2:]
    return n == m > 1 and not np.triu(maps, 1).any()


def _sites(example: Example, name: str | None) -> list[Site]:
    spec = example.segment.spec
    return list(spec.sites) if name is None else [spec.site(name)]


def _head_names(part: PartFrame, layer: int | None, heads: Sequence[int] | None) -> str:
    """Return the names of some heads of one layer as ``"5.8,5.10"``; by default all heads of the first layer."""
    layers, columns = part["layers"], part["columns"]
    first = layers[0] if layer is None else int(layer)
    if first not in layers:
        raise NotFoundError(f"layer is {first}; expected one of {', '.join(map(str, layers))}.")
    numbers = columns if heads is None else [int(head) for head in heads]
    if not numbers or any(head not in columns for head in numbers):
        raise NotFoundError(
            f"heads are {numbers} in layer {first}; expected numbers from {columns[0]} to {columns[-1]}."
        )
    return ",".join(f"{first}.{head}" for head in numbers)


def _head_name(part: PartFrame, row: int, column: int) -> str:
    return f"{part['layers'][row]}.{part['columns'][column]}"


def _some_heads(part: PartFrame, heads: Sequence[int]) -> PartFrame:
    columns = [int(head) for head in heads]
    n_heads = part["shape"][1]
    if not columns or not all(0 <= head < n_heads for head in columns):
        raise ConfigError(f"include_heads is {columns}; expected numbers from 0 to {n_heads - 1}.")
    n_layers, _, n_queries, n_keys = part["shape"]
    assert part["attention"] is not None
    maps = part["attention"].reshape(part["shape"])[:, columns]
    return {
        **part,
        "attention": np.ascontiguousarray(maps),
        "columns": columns,
        "shape": [n_layers, len(columns), n_queries, n_keys],
    }


def _show_or_return(
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
            'html_action="view" needs a notebook, and IPython is not installed. '
            'Pass html_action="return" and call save("view.html").'
        ) from None
    display(view)
    return None
