"""What Triton's interpreter does at every call and need not: about half of the time that tests spend in it."""

from __future__ import annotations

import functools
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_patch_lang = interpreter._patch_lang
_of_element = functools.cache(interpreter._get_np_dtype)  # which makes a table of all dtypes to look one up
_new_block, _new_tensor = tl.block_type.__init__, tl.tensor.__init__
_blocks: dict[Any, dict[str, Any]] = {}


def _patch_where_needed(function: Any) -> Any:
    """Patch the language that a kernel sees; what it calls finds it patched, and would do so again at each call."""
    languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    if not languages or any(tl.core.is_builtin(language.load) for language in languages):
        return _patch_lang(function)
    return None


def _numpy_dtype(dtype: Any) -> Any:
    element = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
    return interpreter.np.dtype("uint64") if isinstance(element, tl.pointer_type) else _of_element(element)


def _block_once(self: Any, element_ty: Any, shape: Any) -> None:
    """A block's type is made once for its shape and elements, whose type is kept, so that no other has its id."""
    key = id(element_ty), *(getattr(size, "value", size) for size in shape)
    if key not in _blocks:
        _new_block(self, element_ty, shape)
        made = _blocks[key] = vars(self).copy()
        made["_of_blocks"] = made
    vars(self).update(_blocks[key])


def _tensor_once(self: Any, handle: Any, type: Any) -> None:
    """All that a tensor has beside its handle follows from its type: made once, and kept there."""
    kept = vars(type).get("_of_blocks", vars(type))
    if "_of_tensors" not in kept:
        _new_tensor(self, handle, type)
        kept["_of_tensors"] = {name: value for name, value in vars(self).items() if name != "handle"}
    vars(self).update(kept["_of_tensors"], handle=handle)


def leave_out() -> None:
    """Replace the interpreter's functions by ones that do it once."""
    interpreter._patch_lang = _patch_where_needed
    interpreter._get_np_dtype = _numpy_dtype
    tl.block_type.__init__ = _block_once
    tl.tensor.__init__ = _tensor_once
