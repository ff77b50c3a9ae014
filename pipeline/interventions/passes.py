"""Passes of a model over a corpus: without intervention, with variants of it, and with gradients for an estimate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from headatlas.store.schema.traces import Site

from ..calls.attention_hook import capturing
from ..calls.out_of_memory import is_out_of_memory, release_memory
from ..capture.sites import ModelSites, run_model
from ..corpora.examples import EncodedExample
from ..tokens.batch_plan import BatchLimits, plan_batches
from ..tokens.model_inputs import InputBuilder, ModelInputs
from .actions import N_CLASSES, BatchContext, HeadCall, PositionClass, Recording, Variant
from .editor import Editor, LayerIndex, Recorder
from .measures import Measure
from .prefix import Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_BYTES = 256 << 20
"""Largest size of the logits of one forward pass."""
OnBatch = Callable[[int, int], None]
"""Called after each forward pass with the numbers of examples and of variants that it had."""


@dataclass(frozen=True)
class HeadOutputs:
    """Outputs of the heads of a site over a corpus, before the output projection."""

    means: list[Float[Tensor, "class head d_value"]]
    """Mean output of each class of query tokens (`PositionClass`), by index on the layer axis."""
    norms: Float64[np.ndarray, "layer head"]
    """Mean Euclidean norm over all tokens."""


@dataclass(frozen=True)
class Passes:
    """A model and a corpus, ready for passes.

    `donors` maps the index of an example to that of another one with as many tokens, for actions that need one.
    `edges` returns the edges of a pattern in an example.
    """

    model: PreTrainedModel
    sites: ModelSites
    site: Site
    builder: InputBuilder
    examples: Sequence[EncodedExample]
    limits: BatchLimits
    measure: Measure
    donors: Mapping[int, int] | None = None
    edges: Callable[[int], Bool[np.ndarray, "query key"]] | None = None

    def measure_heads(self, on_batch: OnBatch = lambda n_examples, n_variants: None) -> HeadOutputs:
        """Compute the mean output and the mean norm of every head. One forward pass over the corpus."""
        layers = LayerIndex(self.sites, self.site.name)
        sums: dict[int, Tensor] = {}
        norms = np.zeros((self.site.n_layers, self.site.n_heads))
        counts = torch.zeros(N_CLASSES, dtype=torch.float64)
        with torch.no_grad():
            for indices in self._batches(range(len(self.examples))):
                recorder = Recorder(layers)
                inputs = self._inputs(indices)
                with capturing(self.model, recorder):
                    run_model(self.model, inputs.arguments)
                context = self._context(indices, inputs, recorder.recording)
                of_class = torch.stack([(context.position_class == c) & context.is_token for c in range(N_CLASSES)])
                counts += of_class.sum(dim=(1, 2)).double().cpu()
                for layer, outputs in recorder.recording.outputs.items():
                    total = torch.einsum("cbq,bqhd->chd", of_class.to(outputs.dtype), outputs).double()
                    sums[layer] = sums[layer] + total if layer in sums else total
                    lengths = outputs.norm(dim=-1) * context.is_token[..., None]
                    norms[layer] += lengths.sum(dim=(0, 1)).double().cpu().numpy()
                on_batch(len(indices), 1)
        divisor = counts.clamp(min=1)[:, None, None]
        means = [(sums[layer] / divisor.to(sums[layer].device)).float() for layer in range(self.site.n_layers)]
        return HeadOutputs(means, norms / max(1.0, float(counts.sum())))

    def run(
        self,
        variants: Sequence[Variant],
        on_batch: OnBatch = lambda n_examples, n_variants: None,
        *,
        reuse_prefix: bool = True,
    ) -> Float64[np.ndarray, "variant example"]:
        """Run the model with each variant, and return its effect on each example.

        NaN for examples without a donor, if an action needs one, and for those of which nothing can be measured. With
        `reuse_prefix` a pass starts at the first layer that its variants change.
        """
        layers, effects = LayerIndex(self.sites, self.site.name), np.full((len(variants), len(self.examples)), np.nan)
        prefix = Prefix(self.model, self.sites, self.site.name) if reuse_prefix else None
        order = sorted(range(len(variants)), key=lambda v: variants[v].first_layer)
        with torch.no_grad():
            n_of_layer = max(Counter(variant.first_layer for variant in variants).values(), default=1)
            for indices in self._batches(self._usable(variants), n_of_layer):
                inputs, context, before = self._without(indices, layers, prefix, variants)
                on_batch(len(indices), 1)
                n_together = self._n_variants(inputs)
                start = 0
                while start < len(order):
                    first_layer = variants[order[start]].first_layer
                    group = [v for v in order[start : start + n_together] if variants[v].first_layer == first_layer]
                    try:
                        effects[np.ix_(group, indices)] = self._effects(
                            inputs, context, [variants[v] for v in group], before, layers, prefix
                        )
                    except Exception as error:
                        if len(group) == 1 or not is_out_of_memory(error):
                            raise
                        n_together = len(group) // 2
                        release_memory(self.model.device)
                        continue
                    on_batch(len(indices), len(group))
                    start += len(group)
        return effects

    def token_changes(self, variant: Variant) -> Iterator[tuple[int, Float[np.ndarray, "token"]]]:
        """Yield the change of the measure at each token of each example, by the index of the example.

        The loss of a token stands at its own position; the first token has none. Nothing is yielded if the measure has no
        number for single tokens.
        """
        layers, prefix = LayerIndex(self.sites, self.site.name), Prefix(self.model, self.sites, self.site.name)
        with torch.no_grad():
            for indices in self._batches(self._usable([variant])):
                inputs, context, before = self._without(indices, layers, prefix, [variant])
                if not self.measure.by_token:
                    return
                after = self._read(inputs, context, [variant], layers, prefix)
                changes = (after - before).float().cpu().numpy()
                n_tokens = inputs.arguments["decoder_input_ids" if self._is_two_sided(inputs) else "input_ids"].shape[1]
                for row, index in enumerate(indices):
                    tokens = self.examples[index].target if self._is_two_sided(inputs) else self.examples[index].source
                    assert tokens is not None
                    padded = np.zeros(n_tokens, np.float32)
                    padded[n_tokens - changes.shape[1] :] = changes[row]
                    yield index, padded[: len(tokens)]

    def estimate(
        self, variants: Sequence[Variant], on_batch: OnBatch = lambda n_examples, n_variants: None, *, seed: int = 0
    ) -> Float64[np.ndarray, "variant example"]:
        """Estimate the effect of each variant on each example from gradients with respect to the heads' outputs.

        For a measure that grows with the change in first order this is attribution patching: one forward and one backward
        pass for all variants. A distance grows in second order, and is estimated along random directions of the prediction.
        """
        layers, effects = LayerIndex(self.sites, self.site.name), np.full((len(variants), len(self.examples)), np.nan)
        generator = torch.Generator(self.model.device).manual_seed(seed)
        for indices in self._batches(self._usable(variants)):
            inputs = self._inputs(indices)
            prober = Recorder(layers, with_calls=True, with_gradients=True)
            with capturing(self.model, prober), torch.enable_grad():
                output = run_model(self.model, inputs.arguments)
                directions = self.measure.directions(output, inputs, generator)
            recording = prober.recording
            context = self._context(indices, inputs, recording, self._donor(indices, layers, variants))
            with torch.no_grad():
                reading = self.measure.read(output, inputs)
                nothing = self.measure.effect(reading, reading, inputs)  # NaN where nothing can be measured
            offsets = dict(sorted(recording.offsets.items()))
            derivatives = [
                torch.autograd.grad(
                    direction.sum(),
                    list(offsets.values()),
                    retain_graph=number < len(directions) - 1,
                    allow_unused=True,
                    materialize_grads=True,  # zeros where the prediction does not depend on a layer
                )
                for number, direction in enumerate(directions)
            ]
            gradients = dict(zip(offsets, map(torch.stack, zip(*derivatives, strict=True)), strict=True))
            with torch.no_grad():
                slopes = torch.stack([_slopes(variant, context, gradients) for variant in variants]).double()
                total = slopes if self.measure.order == 1 else slopes.square() / 2
            effects[:, indices] = (total.mean(dim=1) + nothing.double()).cpu().numpy()
            on_batch(len(indices), 1)
        return effects

    def _batches(self, indices: Sequence[int], n_variants: int = 1) -> Iterator[list[int]]:
        """Yield the indices of each batch. A batch of few tokens, with little padding, leaves room for its variants."""
        limits = replace(
            self.limits,
            max_tokens=max(1, self.limits.max_tokens // n_variants),
            price_tokens=self.limits.price_tokens // n_variants,
        )
        sides = {"source": [len(self.examples[i].source) for i in indices]}
        if any(self.examples[i].target is not None for i in indices):
            sides["target"] = [len(target) if (target := self.examples[i].target) else 0 for i in indices]
        for batch in plan_batches({name: np.asarray(values) for name, values in sides.items()}, limits):
            yield [indices[i] for i in batch.examples]

    def _usable(self, variants: Sequence[Variant]) -> list[int]:
        """Return the indices of the examples that have what the actions need."""
        needs_donor = any(edit.action.needs_donor for variant in variants for edit in variant.edits)
        return [i for i in range(len(self.examples)) if not needs_donor or (self.donors and i in self.donors)]

    def _inputs(self, indices: Sequence[int]) -> ModelInputs:
        examples = [self.examples[i] for i in indices]
        return self.measure.prepare(self.builder.build(examples), examples, indices)

    def _donor(self, indices: Sequence[int], layers: LayerIndex, variants: Sequence[Variant]) -> Recording | None:
        """Record the pass over the examples whose outputs are patched in, or return None if no action needs them."""
        if not any(edit.action.needs_donor for variant in variants for edit in variant.edits):
            return None
        assert self.donors is not None, "only examples with a donor are in a batch"
        recorder = Recorder(layers, with_calls=True)
        with torch.no_grad(), capturing(self.model, recorder):
            run_model(self.model, self._inputs([self.donors[i] for i in indices]).arguments)
        return recorder.recording

    def _without(
        self, indices: list[int], layers: LayerIndex, prefix: Prefix | None, variants: Sequence[Variant]
    ) -> tuple[ModelInputs, BatchContext, Tensor]:
        """Run a batch without intervention. Return its inputs, its context and the reading of the measure."""
        inputs = self._inputs(indices)
        with capturing(self.model, Editor(layers, None, ())) if prefix is None else prefix.recording():
            output = run_model(self.model, inputs.arguments)
        context = self._context(indices, inputs, None, self._donor(indices, layers, variants))
        return inputs, context, self.measure.read(output, inputs)

    def _effects(
        self,
        inputs: ModelInputs,
        context: BatchContext,
        variants: Sequence[Variant],
        before: Tensor,
        layers: LayerIndex,
        prefix: Prefix | None,
    ) -> Float64[np.ndarray, "variant example"]:
        """Run some variants of a batch in one forward pass."""
        n, together = len(variants), inputs.repeat(len(variants))
        after = self._read(together, context, variants, layers, prefix)
        before = before.repeat(n, *[1] * (before.dim() - 1))
        return self.measure.effect(before, after, together).view(n, -1).double().cpu().numpy()

    def _read(
        self,
        inputs: ModelInputs,
        context: BatchContext,
        variants: Sequence[Variant],
        layers: LayerIndex,
        prefix: Prefix | None,
    ) -> Tensor:
        """Run one forward pass in which the v-th block of rows has the v-th variant. Return the reading of the measure."""
        n, first_layer = len(variants), min(variant.first_layer for variant in variants)
        start = nullcontext() if prefix is None else prefix.starting_at(first_layer, n)
        own = {first_layer: prefix.heads(first_layer)} if prefix is not None else {}
        with capturing(self.model, Editor(layers, context, variants, own)), start:
            return self.measure.read(run_model(self.model, inputs.arguments), inputs)

    def _context(
        self, indices: Sequence[int], inputs: ModelInputs, own: Recording | None, donor: Recording | None = None
    ) -> BatchContext:
        sequence = self.site.query_sequence
        special = inputs.special[sequence]
        position_class = torch.where(special, int(PositionClass.SPECIAL), int(PositionClass.OTHER))
        position_class[:, 0] = int(PositionClass.FIRST)
        sides = [self.examples[i].source if sequence == "source" else self.examples[i].target for i in indices]
        lengths = torch.tensor([0 if side is None else len(side) for side in sides], device=special.device)
        return BatchContext(indices, position_class, lengths, own, donor, self._edges_of(indices, special.shape[1]))

    @staticmethod
    def _is_two_sided(inputs: ModelInputs) -> bool:
        return "decoder_input_ids" in inputs.arguments

    def _edges_of(self, indices: Sequence[int], n_queries: int) -> Bool[Tensor, "batch query key"] | None:
        if self.edges is None:
            return None
        maps = [self.edges(i) for i in indices]
        edges = np.zeros((len(maps), n_queries, max(array.shape[1] for array in maps)), bool)
        for row, array in zip(edges, maps, strict=True):
            row[: array.shape[0], : array.shape[1]] = array
        return torch.from_numpy(edges)

    def _n_variants(self, inputs: ModelInputs) -> int:
        """Return the number of variants of a batch that run in one forward pass."""
        n_tokens = sum(tensor.numel() for name, tensor in inputs.arguments.items() if name.endswith("input_ids"))
        limit = self.limits.max_tokens
        head = self.model.get_output_embeddings() if self.model.base_model is not self.model else None
        if head is not None:
            limit = min(limit, LOGIT_BYTES // (4 * self.model.config.get_text_config().vocab_size))
        return max(1, limit // n_tokens)


def _slopes(
    variant: Variant, context: BatchContext, gradients: Mapping[int, Float[Tensor, "direction batch query head d_value"]]
) -> Float[Tensor, "direction batch"]:
    """Return the changes that the gradients predict for a variant."""
    assert context.own is not None, "the estimate records the pass"
    slopes = list[Tensor]()
    for edit in variant.edits:
        output = context.own.outputs[edit.layer][:, :, edit.head]
        call = HeadCall(context.own.calls[edit.layer], edit.layer, edit.head, output, context)
        change = edit.action.output(call) - output
        slopes.append(torch.einsum("bqd,kbqd->kb", change, gradients[edit.layer][:, :, :, edit.head]))
    return torch.stack(slopes).sum(dim=0)
