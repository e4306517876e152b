"""Triton's interpreter at half its price: it looks through its whole language at every call of a helper in a kernel.

Once a launch is enough. Kernels that call helpers in their inner loops spend most of their time there otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any


class _Launch:
    """What one launch has patched; stands in for the scope that takes it back at its end."""

    def __init__(self) -> None:
        self.modules: frozenset[str] = frozenset()
        self.scope: Any = None

    def restore(self) -> None:
        self.modules = frozenset()
        self.scope.restore()


@lru_cache(maxsize=1)
def patch_once_a_launch() -> None:
    """Make the interpreter of this process patch each module of its language once a launch.

    A launch opens a scope, patches the language in it and closes it; a helper patches again what is patched already,
    except for the first one of Triton's own, which name another module. A Triton without such scopes is left as it is.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch: Callable[[Any], Any] = interpreter._patch_lang
    if not hasattr(interpreter, "_LangPatchScope"):
        return
    launch = _Launch()

    @lru_cache(maxsize=1024)
    def named_by(function: Any) -> frozenset[str]:
        modules = {"tl": tl, "core": tl.core}
        values = list(function.__globals__.values())
        return frozenset(name for name, module in modules.items() if any(value is module for value in values))

    def once(function: Any) -> Any:
        modules = named_by(function)
        if not launch.modules:
            launch.scope = patch(function)
            launch.modules = modules
            return launch
        if not modules <= launch.modules:
            patch(function)
            launch.modules |= modules
        return None

    interpreter._patch_lang = once
