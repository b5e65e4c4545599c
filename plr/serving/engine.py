"""The inference engine on CPUs: ragged histories in, what ranks the items out, by one call of C++ (csrc/engine)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from plr.errors import EngineError
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import FeatureItemEncoder, IdItemEncoder
from plr.models.items.unisrec import TextItemEncoder
from plr.models.layers.dropout import Dropout
from plr.models.layers.linear import Linear
from plr.models.layers.transformer import TransformerLayer
from plr.models.methods.base import BaseRecommender
from plr.models.methods.erl import ERLRecommender
from plr.models.methods.plr import PLRRecommender
from plr.models.methods.prl import PRLRecommender
from plr.models.recommender import RecommenderModel
from plr_kernels import StreamAttention
from plr_kernels.dispatch.backend import CPP_IS_BUILT, chosen_backend
from plr_kernels.dispatch.checks import check_exclude, check_index, check_integer, check_shape

_MODELS = (BaseRecommender, ERLRecommender, PRLRecommender, PLRRecommender)
_ITEMS = (IdItemEncoder, FeatureItemEncoder, TextItemEncoder)
# What the engine knows how to compute; a module of another class, a subclass too, computes something else.
_KNOWN = (
    *_MODELS, SequenceEncoder, TransformerLayer, Linear, Dropout, StreamAttention,
    nn.Linear, nn.LayerNorm, nn.Embedding, nn.ModuleList,
)  # fmt: skip


GATHERED = 8
"""From one allowed item in so many on, those are ranked apart: they are copied for it."""
LEAST_QUANTIZED = 2**17
"""So many numbers in a table, and it is kept as integers, too."""


class UserStates(NamedTuple):
    """What ranks the items for B histories: `plr.models.scoring.ItemScorer` takes both.

    Attributes:
        states: float32 [B, d], or [B, C, d] of a mixture's components.
        log_weights: float32 [B, C], the logarithms of a mixture's weights; None for one state.
    """

    states: Tensor
    log_weights: Tensor | None

    def of_rows(self, rows: slice | np.ndarray) -> UserStates:
        """Return those of some of the histories."""
        return UserStates(self.states[rows], None if self.log_weights is None else self.log_weights[rows])


def why_not(model: RecommenderModel) -> str | None:
    """Return why the engine cannot take the model, or None where it can.

    It takes methods base, erl, prl and plr on every backbone whose items it knows, with float32 weights on the CPU, in
    evaluation mode, without hooks, where the C++ backend is built and not another one chosen.
    """
    if not CPP_IS_BUILT:
        return "the C++ extension of plr_kernels is not built"
    if chosen_backend() not in ("auto", "cpp"):
        return f"the chosen backend is {chosen_backend()}"
    reason = why_unknown(model)
    if reason is not None:
        return reason
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            return f"{name} is {weight.dtype} on {weight.device}, not float32 on the CPU"
    return None


def why_unknown(model: RecommenderModel) -> str | None:
    """Return what of the model only PyTorch computes, whatever it computes on, or None: its parts, mode and hooks."""
    if type(model) not in _MODELS:
        return f"{type(model).__name__} is computed by PyTorch"
    if type(model.items) not in _ITEMS:
        return f"items of class {type(model.items).__name__} are computed by PyTorch"
    if any(module.training for module in model.modules()):
        return "the model is in training mode"
    items = set(model.items.modules())  # whose table PyTorch computes
    for name, module in model.named_modules():
        if module not in items and type(module) not in _KNOWN:
            return f"{name} is a {type(module).__name__}"
    for name, weight in model.named_parameters():
        if weight.is_inference():
            return f"{name} is an inference tensor, of which no change can be noticed"
    if _has_any_global_hook():
        return "a hook is registered for all modules"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has hooks"
    return None


class Engine:
    """A trained model, its weights packed once for histories of any lengths.

        engine = Engine(model)
        states, log_weights = engine.states(ids, offsets)
        scores, items = engine.top(ids, offsets, k=10)

    Histories stand one after the other, nothing is padded, and the last layer is computed for their last positions
    alone. An answer is the same to the bit alone or with others, in any order and on any number of threads, and float32
    under autocast too. The engine has copies of all weights: it answers as the model was when the engine was made.

    Args:
        model: what `why_not` has nothing against.

    Attributes:
        table: float32 [V, d], the item vectors that histories are made of.
        candidates: float32 [V, d], those that are ranked.
        causal: whether an item leaves what was computed of those before it as it is.
        max_length: how many of a history's last items are read.

    Raises:
        EngineError: the engine cannot take the model; the message says why.
    """

    def __init__(self, model: RecommenderModel) -> None:
        reason = why_not(model)
        if reason is not None:
            raise EngineError(f"the engine cannot take the model: {reason}")
        from plr_kernels import _cpp
        from plr_kernels.extension import as_matrix, resources
        from plr_kernels.top_items.cpu import places_among

        self.temperature = model.temperature
        self.causal, self.max_length = model.encoder.causal, model.encoder.max_length
        self._snapshot = snapshot(model)
        self._resources, self._instruction_set = resources, resources()[0]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            self.table = model.item_table().detach().clone(memory_format=torch.contiguous_format)
            kept = _Kept()
            description = _describe(model, kept)
            self._engine = _cpp.Engine(self._instruction_set, description, as_matrix(self.table))
            self.candidates = model.candidates(self.table).contiguous()
            self._as_matrix = as_matrix
            self._places_among = places_among
            self._pack = partial(_cpp.PackedItems, self._instruction_set)
        reasoning = description["reasoning"]
        self._dim = self.table.shape[1]
        self._components = None
        if reasoning is not None and reasoning["mixes_distributions"]:
            self._components = reasoning["streams"] + (reasoning["fast_state"] == "component")
        # A mixture's probabilities take the float32 scores of all items: csrc/quantized_items.h.
        quantize = self._components is None and self.candidates.numel() >= LEAST_QUANTIZED
        self._ranked = self._pack(as_matrix(self.candidates), quantize)

    def states(self, ids: Tensor, offsets: Tensor) -> UserStates:
        """Encode histories, and reason.

        Args:
            ids: int64 [N], the items of all histories, oldest first.
            offsets: int64 [B + 1], where each history begins, and the end of the last one. Of a history the last
                max_length items are read.

        Raises:
            TypeError, ValueError: not of that kind; a history without an item; an id outside [0, V).
        """
        check_histories(ids, offsets)
        ids, offsets = ids.contiguous(), offsets.contiguous()
        rows = len(offsets) - 1
        users = self._new_states(rows)
        self._engine.states(self._resources()[1], ids.data_ptr(), offsets.data_ptr(), rows, *_addresses(users))
        return users

    def _new_states(self, rows: int) -> UserStates:
        if self._components is None:
            return UserStates(_empty(rows, self._dim), None)
        return UserStates(_empty(rows, self._components, self._dim), _empty(rows, self._components))

    def kept_history(self) -> KeptHistory:
        """Return a history without items yet, to be appended to.

        Raises:
            EngineError: the encoder is not causal.
        """
        if not self.causal:
            raise EngineError("nothing of a history can be kept: the encoder is not causal, an item changes them all")
        return KeptHistory(self, self._engine.new_session())

    def append(self, histories: Sequence[KeptHistory], ids: Tensor, offsets: Tensor) -> UserStates:
        """Append items to kept histories, to all by one call; return what ranks the items for each then.

        The states are those of `states` for the whole histories, to the bit.

        Args:
            histories: of this engine, each once.
            ids: int64 [N], the items of all, oldest first.
            offsets: int64 [B + 1], where those of each begin, and the end of the last ones. Each history gets one or
                more, with those before at most max_length.

        Raises:
            TypeError, ValueError: not of that kind, an id outside [0, V), more than max_length items, a history of
                another engine, or one twice; nothing has been appended to any then.
        """
        check_histories(ids, offsets)
        if len(offsets) != len(histories) + 1:
            raise ValueError(f"offsets must be {len(histories) + 1} numbers, B + 1; found {len(offsets)}")
        ids, offsets = ids.contiguous(), offsets.contiguous()
        users = self._new_states(len(histories))
        kept = [history.kept for history in histories]
        self._engine.append(self._resources()[1], kept, ids.data_ptr(), offsets.data_ptr(), *_addresses(users))
        return users

    def top(
        self, ids: Tensor, offsets: Tensor, k: int, *, exclude: Tensor | None = None, where: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rank the items for histories: `rank(states(ids, offsets), k, exclude=exclude, where=where)`."""
        return self.rank(self.states(ids, offsets), k, exclude=exclude, where=where)

    def rank(
        self, users: UserStates, k: int, *, exclude: Tensor | None = None, where: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores float32 [B, k] and items int64 [B, k], best first, ties to the smaller number.

        As `ItemScorer.top_items`, with one arithmetic whatever B is.

        Args:
            users: from `states`, or rows of it: float32 on the CPU.
            k: how many, 1 <= k <= V.
            exclude: int64 [B, X], the items that a row must not return, padded with -1. Where fewer than k are left,
                -inf and -1 fill up.
            where: bool [V], the items that any row may return; the distributions know the others all the same.

        Raises:
            TypeError, ValueError: not of that kind.
        """
        states, log_weights = users
        sizes = {"d": self._dim}
        _check_floats("states", states)
        if self._components is None:
            check_shape("states", states, "B d", sizes)
            if log_weights is not None:
                raise TypeError(f"log_weights must be None: this model ranks by one state; found {type(log_weights)}")
        else:
            sizes["C"] = self._components
            check_shape("states", states, "B C d", sizes)
            _check_floats("log_weights", log_weights)
            assert log_weights is not None
            check_shape("log_weights", log_weights, "B C", sizes)
        rows, count = len(states), len(self.candidates)
        check_index("k", k)
        if not 1 <= k <= count:
            raise ValueError(f"k must be in [1, V={count}]; found {k}")
        if exclude is not None:
            check_integer("exclude", exclude, (torch.int64,), "states", states)
            check_shape("exclude", exclude, "R X", {"R": rows})
            exclude = exclude.contiguous()
        if where is not None:
            check_integer("where", where, (torch.bool,), "states", states)
            check_shape("where", where, "V", {"V": count})
            where = where.contiguous()
        states = states.contiguous().view(-1, states.shape[-1])
        if where is not None and log_weights is None and self._gathered(rows, k) * int(where.sum()) <= count:
            return self._rank_gathered(states, k, exclude, where.nonzero()[:, 0])
        log_weights = None if log_weights is None else log_weights.contiguous()
        return self._rank(self._ranked, states, log_weights, k, exclude, where)

    def _gathered(self, rows: int, k: int) -> int:
        """Return from one allowed item in how many on those are ranked apart."""
        if rows > self._ranked.quantized_states(k):
            return GATHERED
        return min(16 * GATHERED, max(GATHERED, 32 * GATHERED // max(rows, 1)))  # all of them take few rows less time

    def _rank_gathered(
        self, states: Tensor, k: int, exclude: Tensor | None, allowed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rank few items, whose scores are those that they have among all."""
        rows, count = len(states), len(allowed)
        scores, items = _empty(rows, k).fill_(-torch.inf), _empty(rows, k, dtype=torch.int64).fill_(-1)
        check_exclude(exclude, len(self.candidates))
        if count == 0:
            return scores, items
        if exclude is not None:
            exclude = self._places_among(allowed, exclude)
        gathered = self.candidates[allowed]
        ranked = self._pack(self._as_matrix(gathered), False)  # which keeps the address, not the tensor
        few = min(k, count)
        scores[:, :few], places = self._rank(ranked, states, None, few, exclude, None)
        items[:, :few] = torch.where(places >= 0, allowed[places], -1)
        return scores, items

    def _rank(
        self,
        ranked: Any,
        states: Tensor,
        log_weights: Tensor | None,
        k: int,
        exclude: Tensor | None,
        where: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        rows = len(states) if log_weights is None else len(log_weights)
        scores, items = _empty(rows, k), _empty(rows, k, dtype=torch.int64)
        ranked.top(
            self._resources()[1],
            self._as_matrix(states),
            0 if log_weights is None else log_weights.data_ptr(),
            1 if log_weights is None else log_weights.shape[1],
            k,
            self.temperature,
            *((0, 0) if exclude is None else (exclude.data_ptr(), exclude.shape[1])),
            0 if where is None else where.data_ptr(),
            -1,  # integers where they are faster
            scores.data_ptr(),
            items.data_ptr(),
        )
        return scores, items

    def fits(self, model: RecommenderModel) -> bool:
        """Whether the model that the engine was made of is as it was then: weights, buffers, mode and hooks.

        What is written past PyTorch's counts of changes, through `weight.data` or a NumPy view, cannot be noticed.
        """
        return self._snapshot == snapshot(model) and chosen_backend() in ("auto", "cpp")


class KeptHistory:
    """A history whose keys and values of each layer an engine keeps, 4 bytes · 2 · layers · d a position.

    An item that is appended is computed alone, and the states are those of `Engine.states` for the whole history, to
    the bit. For one thread at a time; of `Engine.kept_history`.

    Attributes:
        engine: whose it is.
        kept: the keys and values, csrc/engine/session.h.
    """

    def __init__(self, engine: Engine, kept: Any) -> None:
        self.engine, self.kept = engine, kept

    @property
    def length(self) -> int:
        """How many items there are."""
        return self.kept.length

    @property
    def bytes(self) -> int:
        """How much memory the keys and values take."""
        return self.kept.bytes

    def append(self, ids: Tensor) -> UserStates:
        """Append items; return what ranks the items for the history then, B = 1.

        Args:
            ids: int64 [N], N >= 1, oldest first; with those before at most max_length.

        Raises:
            TypeError, ValueError: not of that kind, an id outside [0, V), or more than max_length items; nothing has
                been appended then.
        """
        _check_numbers("ids", ids)
        return self.engine.append([self], ids, torch.tensor([0, len(ids)], device="cpu"))


def _addresses(users: UserStates) -> tuple[int, int]:
    return users.states.data_ptr(), 0 if users.log_weights is None else users.log_weights.data_ptr()


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Whatever the process has made its default device and dtype."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def snapshot(model: RecommenderModel) -> list[Any]:
    """Return what tells that a model has been changed: its tensors' versions, every module's mode and hooks.

    It is asked for with every answer: PyTorch's own walks over a model take as long as the answer for one user.
    """
    weights: list[Any] = []
    modules: list[Any] = []
    left: list[nn.Module] = [model]
    while left:
        module = left.pop()
        modules.append((type(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks)))
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    weights.append((tensor.data_ptr(), None if tensor.is_inference() else tensor._version))
        left.extend(child for child in module._modules.values() if child is not None)
    return [weights, modules, _has_any_global_hook(), model.temperature]


def _check_floats(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        found = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a float32 tensor on the CPU; found {found}")


def _check_numbers(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.device.type != "cpu":
        found = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be an int64 tensor on the CPU; found {found}")
    if tensor.ndim != 1:
        raise ValueError(f"{name} must have one dimension; found shape {list(tensor.shape)}")


def check_histories(ids: Tensor, offsets: Tensor) -> None:
    """Raise TypeError or ValueError where ids [N] and offsets [B + 1] are not what `Engine.states` takes."""
    _check_numbers("ids", ids)
    _check_numbers("offsets", offsets)
    if len(offsets) < 1 or int(offsets[0]) < 0 or int(offsets[-1]) > len(ids):
        ends = [int(offsets[0]), int(offsets[-1])] if len(offsets) else []
        raise ValueError(f"offsets must be B + 1 numbers from 0 to {len(ids)}, the number of ids; found {ends}")


class _Kept:
    """Float32 arrays whose addresses are given away, kept alive."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def address(self, tensor: Tensor) -> int:
        """Return the address of the numbers, one after the other."""
        self._tensors.append(tensor.detach().to(torch.float32).contiguous())
        return self._tensors[-1].data_ptr()

    def pair(self, module: nn.Linear | nn.LayerNorm) -> tuple[int, int]:
        """Return the addresses of weight and bias."""
        return self.address(module.weight), self.address(module.bias)


def _describe(model: RecommenderModel, kept: _Kept) -> dict[str, Any]:
    """Return what csrc/engine/bindings.cpp reads."""
    encoder = model.encoder
    layers: list[Any] = list(encoder.layers)
    return {
        "dim": encoder.options.dim,
        "heads": encoder.options.heads,
        "ffn_dim": encoder.options.ffn_dim,
        "max_length": encoder.max_length,
        "causal": encoder.causal,
        "cosine": model.items.cosine,
        "position": kept.address(encoder.position.weight),
        "input_norm": kept.pair(encoder.input_norm),
        "input_norm_eps": encoder.input_norm.eps,
        "layers": [
            {
                "query": kept.pair(layer.query),
                "key_value": kept.pair(layer.key_value),
                "attention_output": kept.pair(layer.attention_output),
                "attention_norm": kept.pair(layer.attention_norm),
                "ffn_in": kept.pair(layer.ffn_in),
                "ffn_out": kept.pair(layer.ffn_out),
                "ffn_norm": kept.pair(layer.ffn_norm),
                "attention_norm_eps": layer.attention_norm.eps,
                "ffn_norm_eps": layer.ffn_norm.eps,
            }
            for layer in layers
        ],
        "reasoning": _reasoning(model, kept),
    }


def _reasoning(model: RecommenderModel, kept: _Kept) -> dict[str, Any] | None:
    if isinstance(model, PLRRecommender):
        return _parallel_reasoning(model, kept)
    if not isinstance(model, ERLRecommender | PRLRecommender):
        return None
    return {
        "streams": 1,
        "steps": model.steps,
        "step_inputs": kept.address(model.step_embedding.weight),  # [T, 1, d]
        "pooling": "mean_with_start" if isinstance(model, ERLRecommender) else "last",
        "fast_state": "none",
        "mixes_distributions": False,
        "gate": None,
    }


def _parallel_reasoning(model: PLRRecommender, kept: _Kept) -> dict[str, Any]:
    options = model.options
    description: dict[str, Any] = {
        "streams": options.streams,
        "steps": model.steps if options.reasoning else 0,
        "pooling": options.pooling,
        "fast_state": options.fast_state,
        "mixes_distributions": options.mixes_distributions,
        "gate": None,
    }
    if options.reasoning:
        inputs = model.step_embedding.weight.double()[:, None].repeat(1, options.streams, 1)  # [T, M, d]
        inputs[0] += model.trigger.weight  # the streams start from h_0 and their triggers
        description["step_inputs"] = kept.address(inputs)
    else:
        description["heads"] = kept.pair(model.heads)
    if model.gate is not None:
        gates = [model.gate] if model.fast_gate is None else [model.gate, model.fast_gate]
        weight, bias = (torch.cat([getattr(gate, name) for gate in gates]) for name in ("weight", "bias"))
        description["gate"] = kept.address(weight), kept.address(bias)
    return description
