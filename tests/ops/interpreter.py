"""Triton's interpreter without what it does again at each call of a function from a kernel.

It replaces the functions of ``triton.language`` by its own when a kernel starts, and once more for
every function that the kernel calls, and it makes a table of all number formats for every tensor:
half of the time of a kernel of many small functions.
"""

import functools

from triton import language as tl
from triton.runtime import interpreter


def remembered(find):
    """``find`` of a type, whose numbers alone matter."""
    found = {}

    def look_up(dtype):
        name = dtype.scalar.name
        if name not in found:
            found[name] = find(dtype)
        return found[name]

    return look_up


def hasten() -> None:
    """Lets what has been replaced be, until the kernel ends; patches this process."""
    patch, restore = interpreter._patch_lang, interpreter._LangPatchScope.restore
    replaced: set[object] = set()  # modules, since the kernel started

    @functools.cache
    def languages(fn) -> frozenset:
        return frozenset(each for each in fn.__globals__.values() if each is tl or each is tl.core)

    def patch_once(fn):
        if languages(fn) <= replaced:
            return interpreter._LangPatchScope()
        replaced.update(languages(fn))
        return patch(fn)

    def restored(scope) -> None:
        restore(scope)
        replaced.clear()

    interpreter._patch_lang = patch_once
    interpreter._LangPatchScope.restore = restored
    interpreter._get_np_dtype = remembered(interpreter._get_np_dtype)
