"""What Triton's interpreter does at every call and need not: it took about half of the time that tests spend in it."""

from __future__ import annotations

import functools
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_patch_lang = interpreter._patch_lang
_of_element = functools.cache(interpreter._get_np_dtype)  # which makes a table of all dtypes to look one up


def _patch_where_needed(function: Any) -> Any:
    """Patch the language that a kernel sees; what it calls finds it patched, and would do so again at each call."""
    languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    if not languages or any(tl.core.is_builtin(language.load) for language in languages):
        return _patch_lang(function)
    return None


def _numpy_dtype(dtype: Any) -> Any:
    element = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
    return interpreter.np.dtype("uint64") if isinstance(element, tl.pointer_type) else _of_element(element)


def leave_out() -> None:
    """Replace the interpreter's functions by ones that do it once."""
    interpreter._patch_lang = _patch_where_needed
    interpreter._get_np_dtype = _numpy_dtype
