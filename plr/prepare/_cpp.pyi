"""The C++ part of preparing, csrc/data/bindings.cpp."""

from typing import Any

def __getattr__(name: str) -> Any: ...
