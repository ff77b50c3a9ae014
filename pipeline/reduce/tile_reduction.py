"""Computation of the stored values of one tile from query and key, in torch, on any device.

A tile is a block of examples of equal length, heads and query rows. It has no padding. It is small enough to stay in
the processor's cache during about ten passes. Memory passes dominate the cost, so the code uses few of them: the
largest weight of a row is 1/Z, entropy is log Z minus one dot product, and distance is a matrix-vector product. The
strongest keys come from one sort of integers that contain weight and position. Statistics are sums of weights before
quantization.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from headatlas.store.codecs.attention_codecs import AttentionCodec, Selection, attention_codec

from ..calls.lazy_mask import LOWEST

_NOTHING_VISIBLE = -1e37
_SMALLEST_WEIGHT = torch.finfo(torch.float32).tiny

_LARGEST_CODE = torch.tensor(((1 << 29) - 1) * 4, dtype=torch.int32)
_SORT_BITS = 7
"""Largest number of key position bits in a 32-bit sort key. The weight then loses up to 5 of its 23 mantissa bits."""


@dataclass(frozen=True)
class TileRequest:
    """Results to compute for a tile."""

    attention: str | None
    logsumexp: bool
    n_edges: int
    statistics: frozenset[str]


@dataclass(frozen=True)
class KeptWeights:
    """Weights of each row that a sparse codec keeps, by ascending key, in the first `count` slots."""

    key: Int[Tensor, "example head query slot"]
    stored: Shaped[Tensor, "example head query slot"]
    count: Int[Tensor, "example head query"]
    dropped: Float[Tensor, "example head query"]


@dataclass
class TileResult:
    """Results of a tile. `sums` are statistics summed over the tile's rows, ``[example, head]``."""

    attention: Shaped[Tensor, "example head query key"] | None = None
    sparse_weights: KeptWeights | None = None
    logsumexp: Float[Tensor, "example head query"] | None = None
    edge_key: Shaped[Tensor, "example head query edge"] | None = None
    edge_weight: Shaped[Tensor, "example head query edge"] | None = None
    sums: dict[str, Float[Tensor, "example head"]] = field(default_factory=dict)
    valid: Bool[Tensor, "example head"] | None = None
    """True if all rows are finite and see at least one key. None if that holds for every example and head."""


@dataclass(frozen=True)
class Tile:
    """Inputs of one tile.

    `bias` is added to the scores (mask and position bias; `LOWEST` hides a key). `first_row` is the position of the
    first query row. With `causal` the keys end at the last row and no row sees a later key. `triangular` is True if the
    scores have to be masked for that, and False if `bias` does it.
    """

    query: Float[Tensor, "example head query d_head"]
    key: Float[Tensor, "example kv_head key d_head"]
    scaling: float
    softcap: float | None = None
    bias: Float[Tensor, "#example #head query key"] | None = None
    sinks: Float[Tensor, "head"] | None = None
    causal: bool = False
    triangular: bool = False
    first_row: int = 0
    special: Bool[Tensor, "example key"] | None = None


@dataclass(frozen=True)
class WeightTile:
    """A tile of weights that the model returned. `tolerance` is the largest difference of a row's sum from 1."""

    weights: Float[Tensor, "example head query key"]
    tolerance: float
    causal: bool = False
    first_row: int = 0
    special: Bool[Tensor, "example key"] | None = None


def reduce_weights(tile: WeightTile, request: TileRequest) -> TileResult:
    """Compute the requested results from weights, in float32."""
    result, weights = TileResult(), tile.weights.contiguous()
    mass = weights.sum(dim=-1, keepdim=True)
    is_valid = (mass - 1).abs() <= tile.tolerance  # False for NaN
    if is_valid.device.type != "cpu" or not bool(is_valid.all()):  # the host does not wait for a GPU
        result.valid = is_valid.flatten(2).all(dim=-1)
    logarithms = torch.log(weights.clamp(min=_SMALLEST_WEIGHT))
    _fill_result(
        result, tile, request, weights, logarithms, torch.zeros_like(mass), mass, weights.amax(dim=-1, keepdim=True)
    )
    return result


def reduce_tile(tile: Tile, request: TileRequest) -> TileResult:
    """Compute scores, softmax and the requested results, in float32."""
    scores = _scores(tile)  # [example, head, query, key]
    largest = scores.amax(dim=-1, keepdim=True)
    top = largest
    if tile.sinks is not None:
        top = torch.maximum(largest, tile.sinks.view(1, -1, 1, 1))
    shifted = scores.sub_(top)
    weights = torch.exp(shifted)
    norm = weights.sum(dim=-1, keepdim=True)
    mass = norm
    if tile.sinks is not None:
        norm = norm + torch.exp(tile.sinks.view(1, -1, 1, 1) - top)
    log_norm = torch.log(norm)
    logsumexp = top + log_norm

    result = TileResult()
    is_valid = torch.isfinite(logsumexp) & (largest > _NOTHING_VISIBLE)
    if is_valid.device.type != "cpu" or not bool(is_valid.all()):  # the host does not wait for a GPU
        result.valid = is_valid.flatten(2).all(dim=-1)
    if request.logsumexp:
        result.logsumexp = logsumexp.squeeze(-1)
    if not (request.attention or request.n_edges or request.statistics):
        return result

    inverse = torch.reciprocal(norm)
    weights.mul_(inverse)
    _fill_result(result, tile, request, weights, shifted, log_norm, mass * inverse, inverse * torch.exp(largest - top))
    return result


def _fill_result(
    result: TileResult,
    tile: Tile | WeightTile,
    request: TileRequest,
    weights: Float[Tensor, "example head query key"],
    shifted: Float[Tensor, "example head query key"],
    log_norm: Float[Tensor, "example head query 1"],
    mass: Float[Tensor, "example head query 1"],
    maximum: Float[Tensor, "example head query 1"],
) -> None:
    """Compute results from weights, with log w = `shifted` − `log_norm`. The content of `shifted` is overwritten."""
    if request.statistics:
        flat = (weights.shape[0] * weights.shape[1], weights.shape[2] * weights.shape[3])
        result.sums = _sums(tile, request.statistics, weights, shifted, log_norm, mass, maximum, flat)
    codec = attention_codec(request.attention) if request.attention else None
    selection = None if codec is None else codec.selection
    n_strongest = max(request.n_edges, 0 if selection is None else min(selection.n_kept, weights.shape[3]))
    if n_strongest:
        key, weight = strongest_keys(weights, n_strongest, tile.first_row, tile.causal)
        if request.n_edges:
            result.edge_key, result.edge_weight = key[..., : request.n_edges], weight[..., : request.n_edges]
        if codec is not None and selection is not None:
            n_kept = min(selection.n_kept, weights.shape[3])  # further slots are padding of the edges
            result.sparse_weights = _select_weights(
                key[..., :n_kept], weight[..., :n_kept], mass.squeeze(-1), codec, selection
            )
    if codec is not None and selection is None:
        result.attention = _encode(weights, codec, out=shifted)


_HALF = torch.tensor(0.5)
_POSITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sqrt": lambda weights, out: torch.sqrt(weights, out=out),
    "linear": lambda weights, out: weights,
}
"""Position of weights on each scale of codes, from 0 to 1; the second argument is memory to work in."""


def _encode(
    weights: Float[Tensor, "*shape"], codec: AttentionCodec, out: Float[Tensor, "*shape"]
) -> Shaped[Tensor, "*shape"]:
    """Encode weights as stored numbers. `out` is scratch memory."""
    if (steps := codec.steps) is None:
        return weights.to(getattr(torch, codec.values))
    position = _POSITIONS[steps.scale](weights, out)
    torch.add(_HALF, position, alpha=steps.n_steps, out=out)
    # Truncation: floor(n_steps · position + 0.5). Conversion through int32 takes a third of the time.
    return out.to(torch.int32).to(torch.uint8)


def _select_weights(
    key: Int[Tensor, "example head query edge"],
    weight: Float[Tensor, "example head query edge"],
    mass: Float[Tensor, "example head query"],
    codec: AttentionCodec,
    selection: Selection,
) -> KeptWeights:
    """Select the weights that a sparse codec keeps from the strongest keys of each row."""
    is_selected = (weight >= selection.threshold) & (weight > 0)
    is_selected[..., 0] = weight[..., 0] > 0
    dropped = (mass - (weight * is_selected).sum(dim=-1)).clamp_(0, 1)
    order = torch.where(is_selected, key, torch.iinfo(key.dtype).max).argsort(dim=-1)
    weight = torch.gather(weight, -1, order)
    stored = _encode(weight, codec, out=torch.empty_like(weight))
    return KeptWeights(torch.gather(key, -1, order), stored, is_selected.sum(dim=-1), dropped)


def _scores(tile: Tile) -> Float[Tensor, "example head query key"]:
    n_examples, n_heads, n_rows, d_head = tile.query.shape
    n_kv_heads, n_keys = tile.key.shape[1:3]
    # Query heads that share a key head are rows of one product.
    query = tile.query.reshape(n_examples * n_kv_heads, n_heads // n_kv_heads * n_rows, d_head)
    key = tile.key.reshape(n_examples * n_kv_heads, n_keys, d_head)
    product = torch.empty((query.shape[0], query.shape[1], n_keys), dtype=torch.float32, device=query.device)
    torch.baddbmm(product, query, key.transpose(1, 2), beta=0, alpha=tile.scaling, out=product)
    scores = product.view(n_examples, n_heads, n_rows, n_keys)
    if tile.softcap is not None:
        scores.div_(tile.softcap).tanh_().mul_(tile.softcap)
    if tile.bias is not None:
        scores.add_(tile.bias)
    if tile.triangular:
        scores.add_(causal_bias(tile.first_row, n_rows, n_keys, scores.device))
    return scores


def causal_bias(first_row: int, n_rows: int, n_keys: int, device: torch.device) -> Float[Tensor, "query key"]:
    """Return 0 where key <= query and `LOWEST` elsewhere, for query rows from `first_row`."""
    if n_rows * n_keys <= 1 << 14 and device.type == "cpu":
        return _cached_causal_bias(first_row, n_rows, n_keys)
    return torch.full((n_rows, n_keys), LOWEST, device=device).triu(first_row + 1)


@lru_cache(maxsize=128)
def _cached_causal_bias(first_row: int, n_rows: int, n_keys: int) -> Float[Tensor, "query key"]:
    return torch.full((n_rows, n_keys), LOWEST).triu(first_row + 1)


def _distances(first_row: int, n_rows: int, n_keys: int, device: torch.device) -> Float[Tensor, "pair"]:
    """Return |query_pos − key_pos| of each pair. Those of a GPU's large tiles are not kept."""
    make = _cached_distances if device.type == "cpu" else _make_distances
    return make(first_row, n_rows, n_keys, device)


def _make_distances(first_row: int, n_rows: int, n_keys: int, device: torch.device) -> Float[Tensor, "pair"]:
    query = torch.arange(first_row, first_row + n_rows, device=device)
    key = torch.arange(n_keys, device=device)
    return (query[:, None] - key[None, :]).abs().float().flatten()


_cached_distances = lru_cache(maxsize=128)(_make_distances)


def _sums(
    tile: Tile | WeightTile,
    names: frozenset[str],
    weights: Float[Tensor, "example head query key"],
    shifted: Float[Tensor, "example head query key"],
    log_norm: Float[Tensor, "example head query 1"],
    mass: Float[Tensor, "example head query 1"],
    maximum: Float[Tensor, "example head query 1"],
    flat: tuple[int, int],
) -> dict[str, Float[Tensor, "example head"]]:
    """Return each statistic summed over the tile's rows."""
    n_examples, n_heads, n_rows, n_keys = weights.shape
    sums: dict[str, Tensor] = {}
    pairs = weights.view(flat)
    if "entropy" in names:
        # -Σ w·log w, with log w = shifted - log Z
        product = torch.linalg.vecdot(pairs, shifted.view(flat)).view(n_examples, n_heads)
        sums["entropy"] = (log_norm * mass).sum(dim=(-2, -1)) - product
    if "maximum" in names:
        sums["maximum"] = maximum.sum(dim=(-2, -1))
    if "distance" in names:
        sums["distance"] = torch.mv(pairs, _distances(tile.first_row, n_rows, n_keys, weights.device)).view(
            n_examples, n_heads
        )
    for name, offset in (("self", 0), ("previous", -1), ("next", 1)):
        if name in names:
            sums[name] = weights.diagonal(tile.first_row + offset, dim1=-2, dim2=-1).sum(dim=-1)
    if "first" in names or "special" in names:
        received = weights.sum(dim=-2)  # [example, head, key]
        if "first" in names:
            sums["first"] = received[..., 0]
        if "special" in names:
            if tile.special is None:
                sums["special"] = torch.zeros_like(received[..., 0])
            else:
                sums["special"] = (received @ tile.special.to(received.dtype)[:, :, None]).squeeze(-1)
    return sums


def strongest_keys(
    weights: Float[Tensor, "example head query key"], n_edges: int, first_row: int, causal: bool
) -> tuple[Int[Tensor, "example head query edge"], Float[Tensor, "example head query edge"]]:
    """Find the `n_edges` largest weights of each row, strongest first. The lower key wins a tie.

    Rows with fewer keys end with key -1 and weight 0. Up to 128 keys, weights that agree to 4 parts in a million count
    as ties; that is the precision of float32 scores. With more keys the order is exact.

    Returns
    -------
    Key positions (int32) and weights (float32).
    """
    n_keys = weights.shape[-1]
    n_kept = min(n_edges, n_keys)
    n_bits = max(2, (n_keys - 1).bit_length())
    bits = weights.view(torch.int32)  # of a float in [0, 1]: 0 to 0x3F800000, in the order of the weights
    position = torch.arange(n_keys, device=weights.device)
    if n_bits <= _SORT_BITS:
        low = (1 << n_bits) - 1
        code = torch.add(_LARGEST_CODE, bits, alpha=-4)
        code.bitwise_and_(~low).add_(position.to(torch.int32))
    else:
        low = (1 << n_bits) - 1
        code = bits.to(torch.int64).neg_().bitwise_left_shift_(n_bits).add_(position)
    smallest_codes = _smallest(code, n_kept)
    key = smallest_codes.bitwise_and_(low).to(torch.int64)
    weight = torch.gather(weights, -1, key)
    if causal:
        row = torch.arange(first_row, first_row + weights.shape[-2], device=weights.device)[:, None]
        hidden = key > row
        key.masked_fill_(hidden, -1)
        weight.masked_fill_(hidden, 0)
    key = key.to(torch.int32)
    if n_kept < n_edges:
        key = torch.nn.functional.pad(key, (0, n_edges - n_kept), value=-1)
        weight = torch.nn.functional.pad(weight, (0, n_edges - n_kept))
    return key, weight


def _smallest(code: Int[Tensor, "example head query key"], n: int) -> Int[Tensor, "example head query edge"]:
    """Return the `n` smallest codes of each row in order. The content of `code` is overwritten."""
    if code.device.type != "cpu":
        return torch.topk(code, n, dim=-1, largest=False, sorted=True).values
    # numpy's vectorized sort takes 2 ns per weight, torch.topk 15 ns, torch.sort 10 to 20 ns.
    rows = code.numpy()
    if rows.shape[-1] > 128:
        rows = np.ascontiguousarray(np.partition(rows, n - 1, axis=-1)[..., :n])
    rows.sort(axis=-1)
    return torch.from_numpy(np.ascontiguousarray(rows[..., :n]))
