"""The C++ backend, csrc/bindings.cpp; its calls take addresses and sizes."""

from typing import Any

def __getattr__(name: str) -> Any: ...
