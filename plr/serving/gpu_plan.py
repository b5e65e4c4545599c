"""What ranks the items for histories, on GPUs: products of packed weights, few kernels between them, CUDA graphs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from plr.errors import EngineError
from plr.models.layers.transformer import TransformerLayer
from plr.models.methods.erl import ERLRecommender
from plr.models.methods.plr import ParallelReasoning, PLRRecommender
from plr.models.methods.prl import PRLRecommender
from plr.models.recommender import RecommenderModel
from plr.serving.cuda_graphs import MOST_BYTES, Graphs, moved
from plr.serving.engine import UserStates, check_histories, snapshot, why_unknown
from plr_kernels.dispatch.backend import TRITON_INTERPRETED, chosen_backend, runnable_backends
from plr_kernels.dispatch.precision import no_autocast
from plr_kernels.forward_only.operator import bias_gelu, stream_attention_into, sum_norm
from plr_kernels.triton_shared.launch import float32_precision

__all__ = ["GPUPlan", "Shape", "why_not"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHORTEST = 8
"""Positions of the shortest shape."""
MOST_POSITIONS = 2**15
"""Rows times positions of the largest shape: its states of d = 256 are 32 MiB of float32."""
ONE_PASS = 2**12
"""Histories with so many positions, padding counted, are one pass whatever their lengths: the GPU's work for them is
about as long as the launches take (counted, not measured: 6 GFLOP at d = 256 in two layers)."""


class Shape(NamedTuple):
    """What decides the launches of a pass.

    Attributes:
        rows, length: the histories and their positions, with padding.
        precision: of float32 products.
    """

    rows: int
    length: int
    precision: str


def why_not(model: RecommenderModel) -> str | None:
    """Return why the plan cannot take the model, or None where it can.

    It takes the models that the engine takes on CPUs: methods base, erl, prl and plr on every backbone whose items it
    knows, in evaluation mode, without hooks; here with weights of float32, bfloat16 or float16 on one GPU, where Triton
    is installed and no other backend chosen. (Under TRITON_INTERPRET=1 a CPU counts as a GPU.)
    """
    if chosen_backend() not in ("auto", "triton"):
        return f"the chosen backend is {chosen_backend()}"
    if "triton" not in runnable_backends():
        return "the backend triton cannot run here"
    reason = why_unknown(model)
    if reason is not None:
        return reason
    first = next(model.parameters())
    for name, weight in model.named_parameters():
        if weight.device.type != "cuda" and not TRITON_INTERPRETED:
            return f"{name} is on {weight.device}, not on a GPU"
        if weight.device != first.device:
            return f"{name} is on {weight.device}, others are on {first.device}"
        if weight.dtype not in DTYPES or weight.dtype != first.dtype:
            return f"{name} is {weight.dtype}; all must be one of float32, bfloat16 and float16"
    return None


class _Norm(NamedTuple):
    """Weight [d], bias [d] and epsilon of a LayerNorm, as `sum_norm` takes them."""

    weight: Tensor
    shift: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> _Norm:
        return cls(norm.weight.detach(), norm.bias.detach(), norm.eps)


class _Linear(NamedTuple):
    """Weight [in, out], as a product takes it from the right, and bias [out]."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, *parts: nn.Linear) -> _Linear:
        """Return layers of one input as one, their outputs side by side."""
        weight, bias = (torch.cat([getattr(part, name).detach() for part in parts]) for name in ("weight", "bias"))
        return cls(weight.t(), bias)

    def __call__(self, states: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.addmm(self.bias, states, self.weight, out=out)


class _Layer:
    """A Transformer layer's weights, and what it does with them beside attention."""

    def __init__(self, layer: Any) -> None:
        assert isinstance(layer, TransformerLayer)
        self.query, self.key_value = _Linear.of(layer.query), _Linear.of(layer.key_value)
        self.all = _Linear.of(layer.query, layer.key_value)  # [d, 3d]
        self._output, self._attention_norm = _Linear.of(layer.attention_output), _Norm.of(layer.attention_norm)
        self._ffn_in, self._ffn_out = _Linear.of(layer.ffn_in), _Linear.of(layer.ffn_out)
        self._ffn_norm = _Norm.of(layer.ffn_norm)

    def finish(self, states: Tensor, joined: Tensor) -> Tensor:
        """Both residual sublayers of states [R, d], given what attention returned, joined [R, d]."""
        states = sum_norm(states, joined @ self._output.weight, *self._attention_norm, bias=self._output.bias)
        inner = bias_gelu(states @ self._ffn_in.weight, self._ffn_in.bias)
        return sum_norm(states, inner @ self._ffn_out.weight, *self._ffn_norm, bias=self._ffn_out.bias)


class _Reasoning:
    """What a method does with h_0: M streams' steps, and what is made of their states."""

    def __init__(self, model: RecommenderModel, dtype: torch.dtype) -> None:
        self.model = model
        self.steps, self.streams = 0, 1
        self.heads: _Linear | None = None
        self.gate: _Linear | None = None
        if isinstance(model, ERLRecommender | PRLRecommender):
            self.steps = model.steps
            self.inputs = model.step_embedding.weight.detach()[:, None]  # [T, 1, d]
        elif isinstance(model, PLRRecommender):
            self.streams = model.options.streams
            if model.options.reasoning:
                self.steps = model.steps
                inputs = model.step_embedding.weight.detach().double()[:, None].repeat(1, self.streams, 1)  # [T, M, d]
                inputs[0] += model.trigger.weight.detach()  # the streams start from h_0 and their triggers
                self.inputs = inputs.to(dtype)
            else:
                self.heads = _Linear.of(model.heads)
            if model.gate is not None:
                self.gate = _Linear.of(model.gate, *([] if model.fast_gate is None else [model.fast_gate]))

    def users(self, fast: Tensor, steps: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return what ranks, from h_0 [B, d] and the states [B·M, d] of each step: [B, d] or [B, C, d], and weights."""
        model, rows = self.model, len(fast)
        if isinstance(model, PLRRecommender):
            return self._parallel(model, fast, steps)
        if isinstance(model, ERLRecommender):
            return model.queries(torch.stack([fast, *steps]).mean(dim=0)), None
        return model.queries(steps[-1] if steps else fast).view(rows, -1), None

    def _parallel(self, model: PLRRecommender, fast: Tensor, steps: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        options, shape = model.options, (len(fast), self.streams, -1)
        every = [self.heads(fast)] if self.heads is not None else steps
        pooled = every[-1] if options.pooling == "last" or len(every) == 1 else torch.stack(every).mean(dim=0)
        streams = pooled.view(shape)  # [B, M, d]
        if options.fast_state == "added":
            streams = streams + fast[:, None]
        elif options.fast_state == "component":
            streams = torch.cat([streams, fast[:, None]], dim=1)
        scores = fast.new_zeros(streams.shape[:2]) if self.gate is None else self.gate(fast)
        outcome = ParallelReasoning(fast=fast, states=streams[:, :, None], streams=streams, gate_scores=scores)
        if options.mixes_distributions:
            return model.queries(outcome.streams), outcome.log_gates
        return model.queries(outcome.final if options.fast_state == "ranking" else outcome.slow), None


class GPUPlan:
    """A trained model on a GPU, its weights packed once for histories of any lengths.

        plan = GPUPlan(model)
        states, log_weights = plan.states(ids, offsets)

    What the engine computes on CPUs, in the model's dtype: the last layer for the last positions alone, M streams'
    steps on the same keys and values. Between the products of matrices there are three kernels
    (`plr_kernels.forward_only`). Histories are padded to a few shapes, each of which is captured as a CUDA graph when
    it comes for the second time; nothing waits for the GPU. What a shape is filled up with changes no answer by a bit;
    another shape may, as products of matrices are rounded otherwise. The plan answers as the model was when it was
    made. On a CPU it computes by the kernels' formulas, for tests.

    Args:
        model: what `why_not` has nothing against.
        table: [V, d], what `model.item_table()` returned where the caller has it.
        most_bytes: how much memory the graphs may hold; 0: nothing is captured, all is launched.

    Attributes:
        graphs: which shapes are captured, and why none are where that is so.

    Raises:
        EngineError: the plan cannot take the model's parts; the message says why.
    """

    def __init__(self, model: RecommenderModel, table: Tensor | None = None, *, most_bytes: int = MOST_BYTES) -> None:
        reason = why_unknown(model)
        if reason is not None:
            raise EngineError(f"the GPU plan cannot take the model: {reason}")
        self.graphs = Graphs(most_bytes)
        self._snapshot = snapshot(model)
        encoder = model.encoder
        weight = encoder.position.weight
        self.causal, self.max_length = encoder.causal, encoder.max_length
        self._heads, self._device = encoder.options.heads, weight.device
        with torch.inference_mode(False), torch.no_grad(), no_autocast(weight):
            self._table = (model.item_table() if table is None else table).detach().to(weight.dtype)
            self._position, self._input_norm = weight.detach(), _Norm.of(encoder.input_norm)
            self._layers = [_Layer(layer) for layer in encoder.layers]
            self._reasoning = _Reasoning(model, weight.dtype)
            # How much position i of a causal model sees.
            self._seen = torch.arange(1, self.max_length + 1, dtype=torch.int32, device=self._device)

    def fits(self, model: RecommenderModel) -> bool:
        """Whether the model that the plan was made of is as it was then: as `Engine.fits`."""
        return self._snapshot == snapshot(model) and chosen_backend() in ("auto", "triton")

    def states(self, ids: Tensor, offsets: Tensor) -> UserStates:
        """Encode histories, and reason: as `Engine.states`, with the result on the GPU in the model's dtype.

        Args:
            ids: int64 [N] on the CPU, the items of all histories, oldest first.
            offsets: int64 [B + 1] on the CPU, where each history begins, and the end of the last one.

        Raises:
            TypeError, ValueError: not of that kind; a history without an item; an id outside [0, V).
        """
        check_histories(ids, offsets)
        numbers, ends = ids.numpy(), offsets.numpy()
        self._check_values(numbers, ends)
        lengths = np.minimum(np.diff(ends), self.max_length)
        starts = ends[1:] - lengths
        groups = self._groups(lengths)
        with torch.inference_mode(False), torch.no_grad(), no_autocast(self._table):
            parts = [self._pass(numbers, starts[rows], lengths[rows], longest) for rows, longest in groups]
            if len(parts) == 1:
                return UserStates(*parts[0])
            states, log_weights = zip(*parts, strict=True)
            back = moved(torch.from_numpy(np.argsort(np.concatenate([rows for rows, _ in groups]))), self._device)
            weights = None if log_weights[0] is None else torch.cat(log_weights)[back]
            return UserStates(torch.cat(states)[back], weights)

    def _check_values(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Raise where a history is empty, or an item is not in the table; on the CPU, where nothing is waited for."""
        empty = np.flatnonzero(np.diff(ends) < 1)
        if len(empty):
            row = int(empty[0])
            raise ValueError(f"every history needs an item; found {ends[row]} and {ends[row + 1]} for history {row}")
        used, items = ids[ends[0] : ends[-1]], len(self._table)
        if len(used) and not 0 <= used.min() <= used.max() < items:
            place = int(np.flatnonzero((used < 0) | (used >= items))[0])
            row = int(np.searchsorted(ends, place + ends[0], side="right")) - 1
            raise ValueError(f"ids must be in [0, V) (V={items}), found {used[place]} in history {row}")

    def _groups(self, lengths: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Return the rows of each pass, and the positions of its shape: all in one where that is little work."""
        rows = np.arange(len(lengths))
        longest = _padded(int(lengths.max(initial=1)), SHORTEST, self.max_length)
        if _padded(len(rows), 1) * longest <= ONE_PASS:
            return [(rows, longest)]
        groups = []
        shape_lengths = np.array([_padded(length, SHORTEST, self.max_length) for length in lengths.tolist()])
        for length in np.unique(shape_lengths).tolist():
            own = rows[shape_lengths == length]
            most = 1 << (max(MOST_POSITIONS // length, 1).bit_length() - 1)
            groups += [(own[first : first + most], length) for first in range(0, len(own), most)]
        return groups

    def _pass(
        self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, longest: int
    ) -> tuple[Tensor, Tensor | None]:
        """Compute histories of at most so many positions: [B, d] or [B, C, d], and log-weights [B, C] or None."""
        count, rows = len(lengths), _padded(max(len(lengths), 1), 1)
        shape = Shape(rows, longest, float32_precision())
        # A history is padded with its own last item, and the rows with others of one item: nothing that is computed for
        # them reaches another, whatever it is.
        inputs = np.zeros(rows * (longest + 2), dtype=np.int64)
        if count:
            places = starts[:, None] + np.minimum(np.arange(longest), lengths[:, None] - 1)
            inputs[: count * longest] = ids[places].reshape(-1)
        own_lengths, last = inputs[rows * longest :].reshape(2, rows)
        own_lengths[:] = 1
        own_lengths[:count] = lengths
        last[:] = np.arange(rows) * longest + own_lengths - 1
        states, log_weights = self.graphs(
            shape, lambda given: self._run(given, shape), torch.from_numpy(inputs), self._device
        )
        assert states is not None
        return states[:count], None if log_weights is None else log_weights[:count]

    def _run(self, inputs: Tensor, shape: Shape) -> tuple[Tensor, Tensor | None]:
        """The launches: item numbers [rows · length], lengths [rows] and last positions' places [rows], in one."""
        rows, length, _ = shape
        ids, lengths, last = inputs.split([rows * length, rows, rows])
        seen = self._seen[:length].expand(rows, -1) if self.causal else lengths
        states = sum_norm(self._table, self._position[:length], *self._input_norm, index=ids)  # [rows·length, d]
        prefix = []
        for layer in self._layers[:-1]:
            query, key, value = self._split(layer.all(states), rows, 3)
            states = layer.finish(states, self._attended(query, (key, value), None, seen))
            prefix.append((key, value))
        final = self._layers[-1]
        key, value = self._split(final.key_value(states), rows, 2)
        prefix.append((key, value))
        states = states.index_select(0, last)  # [rows, d]
        (query,) = self._split(final.query(states), rows, 1)
        fast = final.finish(states, self._attended(query, prefix[-1], None, lengths))
        return self._reasoning.users(fast, self._steps(fast, prefix, lengths))

    def _steps(self, fast: Tensor, prefix: list[tuple[Tensor, Tensor]], lengths: Tensor) -> list[Tensor]:
        """Take T steps in M streams: the states [rows·M, d] after each."""
        rows, dim = fast.shape
        steps, streams = self._reasoning.steps, self._reasoning.streams
        # Of each layer and step the streams' queries, keys and values, side by side.
        suffix = fast.new_empty(len(self._layers), steps, rows * streams, 3 * dim)
        state, states = fast, []
        for t in range(steps):
            repeat = streams if t == 0 else 1
            state = sum_norm(state, self._reasoning.inputs[t], *self._input_norm, repeat=repeat)
            for number, layer in enumerate(self._layers):
                layer.all(state, out=suffix[number, t])
                query, _, _ = self._split(suffix[number, t], rows, 3)
                parts = suffix[number, : t + 1].view(t + 1, rows, streams, 3, self._heads, -1)
                _, key, value = parts.permute(3, 1, 4, 2, 0, 5).unbind()  # [rows, H, M, t + 1, D]
                state = layer.finish(state, self._attended(query, prefix[number], (key, value), lengths))
            states.append(state)
        return states

    def _split(self, projected: Tensor, rows: int, parts: int) -> tuple[Tensor, ...]:
        """[rows·X, parts·H·D] -> for each part a view [rows, H, X, D]."""
        dim = projected.shape[1] // (parts * self._heads)
        return projected.view(rows, -1, parts, self._heads, dim).permute(2, 0, 3, 1, 4).unbind()

    def _attended(
        self, query: Tensor, prefix: tuple[Tensor, Tensor], stream: tuple[Tensor, Tensor] | None, lengths: Tensor
    ) -> Tensor:
        """Let queries [rows, H, X, D] read the prefix and their streams -> [rows·X, H·D]."""
        rows, heads, count, dim = query.shape
        if stream is None:
            empty = query.new_empty(rows, heads, count, 0, dim)
            stream = empty, empty
        joined = query.new_empty(rows, count, heads, dim)
        stream_attention_into(joined.transpose(1, 2), query, *prefix, *stream, lengths)
        return joined.view(rows * count, heads * dim)


def _padded(number: int, least: int, most: int | None = None) -> int:
    """The smallest power of two that is at least the number and `least`, or `most` where it is more."""
    padded = max(1 << max(number - 1, 0).bit_length(), least)
    return padded if most is None else min(padded, most)
