"""Modules whose weights alone say what they do."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from plr.models.layers.dropout import Dropout
from plr.models.layers.linear import Linear

_CLASSES = (Linear, nn.LayerNorm, Dropout)


def are_plain(*modules: nn.Module) -> bool:
    """Whether a function of the modules' weights may take the place of calling them.

    False where one has a hook, which sees its calls or (pruning) sets its weight at each, or all modules have one (a
    counter of operations by module, say), or where one is of another class, as after a parametrization or when somebody
    has put a module of their own in its place.
    """
    if _has_any_global_hook():
        return False
    for module in modules:
        if type(module) not in _CLASSES or module._forward_hooks or module._forward_pre_hooks:
            return False
        if module._backward_hooks or module._backward_pre_hooks:
            return False
    return True
