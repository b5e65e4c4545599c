"""The operators as nn.Module: options in the constructor, tensors in the call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plr_kernels.candidate_cross_entropy import candidate_cross_entropy, candidate_mixture_cross_entropy
from plr_kernels.consistent_mixture_cross_entropy import consistent_mixture_cross_entropy
from plr_kernels.dispatch.checks import (
    check_candidate_options,
    check_dropout_p,
    check_flag,
    check_ignore_index,
    check_loss_options,
    check_number,
    check_temperature,
)
from plr_kernels.info_nce import info_nce
from plr_kernels.linear_cross_entropy import linear_cross_entropy
from plr_kernels.mixture_cross_entropy import mixture_cross_entropy
from plr_kernels.pairwise_kl import pairwise_kl
from plr_kernels.stream_attention import stream_attention


class StreamAttention(nn.Module):
    """Attention of reasoning streams to a shared prefix and to their own past; see
    `plr_kernels.stream_attention`.

    Args:
        scale: what scores are multiplied by; None means 1/√D.
        dropout_p: the dropout probability of attention probabilities in training mode, in [0, 1).
    """

    def __init__(self, *, scale: float | None = None, dropout_p: float = 0.0) -> None:
        super().__init__()
        if scale is not None:
            check_number("scale", scale)
        check_dropout_p(dropout_p)
        self.scale = scale
        self.dropout_p = dropout_p

    def forward(
        self,
        query: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        stream_key: Tensor,
        stream_value: Tensor,
        *,
        prefix_lengths: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """Attend: [B, H, M, D] to [B, H, P, D] and [B, H, M, S, D], with prefix_lengths [B] or [B, M].

        In training mode with dropout, the seed is drawn from torch's generator of the query's device unless
        one is given.
        """
        dropout_p = self.dropout_p if self.training else 0.0
        if dropout_p > 0 and seed is None:
            seed = torch.randint(-(2**63), 2**63 - 1, (), device=query.device)
        return stream_attention(
            query,
            prefix_key,
            prefix_value,
            stream_key,
            stream_value,
            prefix_lengths=prefix_lengths,
            scale=self.scale,
            dropout_p=dropout_p,
            seed=seed,
        )

    def extra_repr(self) -> str:
        """The options, for print(module)."""
        return f"scale={self.scale}, dropout_p={self.dropout_p}"


class PairwiseKL(nn.Module):
    """Mean divergence between the item distributions of a group's states; see `plr_kernels.pairwise_kl`.

    Args:
        temperature: what the logits are divided by, above 0.
        detach_reference: stop the gradient through the second distribution of each pair.
    """

    def __init__(self, *, temperature: float = 1.0, detach_reference: bool = False) -> None:
        super().__init__()
        check_temperature(temperature)
        check_flag("detach_reference", detach_reference)
        self.temperature = temperature
        self.detach_reference = detach_reference

    def forward(self, states: Tensor, items: Tensor) -> Tensor:
        """The divergence, a scalar, of states [B, N, D] over items [V, D]."""
        return pairwise_kl(states, items, temperature=self.temperature, detach_reference=self.detach_reference)

    def extra_repr(self) -> str:
        """The options, for print(module)."""
        return f"temperature={self.temperature}, detach_reference={self.detach_reference}"


class InfoNCE(nn.Module):
    """Contrastive loss between two views of the same batch; see `plr_kernels.info_nce`.

    Args:
        temperature: what the similarities are divided by, above 0.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, view1: Tensor, view2: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss, a scalar, of two views [G, B, D]; rows that share one of the labels [G, B, K] are no negatives."""
        return info_nce(view1, view2, temperature=self.temperature, labels=labels)

    def extra_repr(self) -> str:
        """The options, for print(module)."""
        return f"temperature={self.temperature}"


class LinearCrossEntropy(nn.Module):
    """Cross-entropy of each state's target among all items; see `plr_kernels.linear_cross_entropy`.

    Args:
        temperature: what the logits are divided by, above 0.
        ignore_index: the target of rows that do not count.
        reduction: "mean", "sum", or "none" for the loss of every row.
    """

    def __init__(self, *, temperature: float = 1.0, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__()
        check_loss_options(temperature, ignore_index, reduction)
        self.temperature = temperature
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, states: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        """The loss of states [R, D] over items [V, D] with int64 targets [R]: a scalar, or [R] without reduction."""
        return linear_cross_entropy(
            states,
            items,
            targets,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """The options, for print(module)."""
        return f"temperature={self.temperature}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"


class MixtureCrossEntropy(LinearCrossEntropy):
    """Negative log-likelihood under a mixture of item distributions; see `plr_kernels.mixture_cross_entropy`.

    Args:
        temperature: what the logits are divided by, above 0.
        ignore_index: the target of rows that do not count.
        reduction: "mean", "sum", or "none" for the loss of every row.
    """

    def forward(self, states: Tensor, log_weights: Tensor, items: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of states [R, M, D] with log_weights [R, M] over items [V, D] with int64 targets [R]."""
        return mixture_cross_entropy(
            states,
            log_weights,
            items,
            targets,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class ConsistentMixtureCrossEntropy(nn.Module):
    """Cross-entropy of mixtures in two views, and the divergence between these.

    See `plr_kernels.consistent_mixture_cross_entropy`.

    Args:
        weight: of the divergence.
        temperature: what the logits are divided by, above 0.
        ignore_index: the target of histories that do not count in the cross-entropy.
    """

    def __init__(self, *, weight: float, temperature: float = 1.0, ignore_index: int = -100) -> None:
        super().__init__()
        check_number("weight", weight)
        check_temperature(temperature)
        check_ignore_index(ignore_index)
        self.weight = weight
        self.temperature = temperature
        self.ignore_index = ignore_index

    def forward(
        self, states: Tensor, log_weights: Tensor, items: Tensor, targets: Tensor, drawn: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its two parts, scalars.

        Of states [N, 2, M, D] with log_weights [N, 2, M] over items [V, D], with int64 targets and drawn streams [N].
        """
        return consistent_mixture_cross_entropy(
            states,
            log_weights,
            items,
            targets,
            drawn,
            weight=self.weight,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        """The options, for print(module)."""
        return f"weight={self.weight}, temperature={self.temperature}, ignore_index={self.ignore_index}"


class CandidateCrossEntropy(LinearCrossEntropy):
    """Loss of each state's target against a list of candidates; see `plr_kernels.candidate_cross_entropy`.

    Args:
        kind: "softmax" or "bce".
        positive_power: bce: the power of the target's sigmoid, 0 or more.
        temperature: what the scores are divided by, above 0.
        ignore_index: the target of rows that do not count.
        reduction: "mean", "sum", or "none" for the loss of every row.
        sparse_gradient: the gradient w.r.t. the items as a sparse tensor of the rows that a call names.
    """

    def __init__(
        self,
        *,
        kind: str = "softmax",
        positive_power: float = 1.0,
        temperature: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        sparse_gradient: bool = False,
    ) -> None:
        super().__init__(temperature=temperature, ignore_index=ignore_index, reduction=reduction)
        check_candidate_options(kind, positive_power)
        check_flag("sparse_gradient", sparse_gradient)
        self.kind = kind
        self.positive_power = positive_power
        self.sparse_gradient = sparse_gradient

    def forward(  # type: ignore[override]
        self, states: Tensor, items: Tensor, targets: Tensor, candidates: Tensor, log_q: Tensor | None = None
    ) -> Tensor:
        """The loss of states [R, D] and int64 targets [R] against the rows of items [V, D] that candidates name."""
        return candidate_cross_entropy(
            states,
            items,
            targets,
            candidates,
            log_q=log_q,
            kind=self.kind,
            positive_power=self.positive_power,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            sparse_gradient=self.sparse_gradient,
        )

    def extra_repr(self) -> str:
        """The options, for print(module)."""
        return (
            f"kind={self.kind!r}, positive_power={self.positive_power}, {super().extra_repr()}, "
            f"sparse_gradient={self.sparse_gradient}"
        )


class CandidateMixtureCrossEntropy(LinearCrossEntropy):
    """Negative log-likelihood under a mixture over candidates; see `plr_kernels.candidate_mixture_cross_entropy`.

    Args:
        temperature: what the scores are divided by, above 0.
        ignore_index: the target of rows that do not count.
        reduction: "mean", "sum", or "none" for the loss of every row.
        sparse_gradient: the gradient w.r.t. the items as a sparse tensor of the rows that a call names.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        sparse_gradient: bool = False,
    ) -> None:
        super().__init__(temperature=temperature, ignore_index=ignore_index, reduction=reduction)
        check_flag("sparse_gradient", sparse_gradient)
        self.sparse_gradient = sparse_gradient

    def forward(  # type: ignore[override]
        self,
        states: Tensor,
        log_weights: Tensor,
        items: Tensor,
        targets: Tensor,
        candidates: Tensor,
        log_q: Tensor | None = None,
    ) -> Tensor:
        """The loss of states [R, M, D] with log_weights [R, M] and int64 targets [R] against candidates of items."""
        return candidate_mixture_cross_entropy(
            states,
            log_weights,
            items,
            targets,
            candidates,
            log_q=log_q,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            sparse_gradient=self.sparse_gradient,
        )

    def extra_repr(self) -> str:
        """The options, for print(module)."""
        return f"{super().extra_repr()}, sparse_gradient={self.sparse_gradient}"
