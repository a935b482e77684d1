"""Triton's interpreter without the half of its time in which it patches its language again.

It does so at each call of a device function, though the kernel's launch has done it already.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from unittest import mock

import triton.language as tl
from triton.runtime import interpreter


@contextmanager
def language_patched_once() -> Iterator[None]:
    patch = interpreter._patch_lang

    def patch_once(function: FunctionType):
        known = function.__globals__.values()
        langs = [lang for lang in (tl, tl.core) if any(x is lang for x in known)]
        if langs and not any(tl.core.is_builtin(lang.load) for lang in langs):
            return interpreter._LangPatchScope()
        return patch(function)

    with mock.patch.object(interpreter, "_patch_lang", patch_once):
        yield
