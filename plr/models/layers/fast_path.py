"""Modules without hooks or replaced forwards, so that a fused path may read their weights."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from plr.models.layers.dropout import Dropout
from plr.models.layers.linear import Linear

_CLASSES = (Linear, nn.LayerNorm, Dropout)


def fast_path_applies(*modules: nn.Module) -> bool:
    """Whether a function of the modules' weights may replace calling them.

    False where a module has a hook, which sees its calls or (pruning) sets its weight before each; where a hook is
    registered for all modules (a counter of operations, say); and where a module is of another class, as after a
    parametrization or a replacement.
    """
    if _has_any_global_hook():
        return False
    for module in modules:
        if type(module) not in _CLASSES or module._forward_hooks or module._forward_pre_hooks:
            return False
        if module._backward_hooks or module._backward_pre_hooks:
            return False
    return True
