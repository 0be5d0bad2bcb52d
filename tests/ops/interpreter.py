"""Triton's interpreter with roots as a GPU has them, and without what it does again at each call of
a function from a kernel.

It replaces the functions of ``triton.language`` by its own when a kernel starts, and once more for
every function that the kernel calls, and it makes a table of all number formats for every tensor:
half of the time of a kernel of many small functions. It computes every sum and product of integers
once more to see whether it overflows, which it tells in its debug mode only; and it makes a type
and a shape of many parts for every result, which is the most of what is left.
"""

import dataclasses
import functools

import numpy as np
from triton import language as tl
from triton.language import semantic
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


def flush_roots() -> None:
    """Approximate roots take what is subnormal in float32 for 0, as the instructions do."""

    def flushed(root):
        def approximate(self, arg):
            data = np.where(np.abs(arg.data) < np.finfo(np.float32).tiny, 0, arg.data)
            return interpreter.TensorHandle(root(data.astype(arg.data.dtype)), arg.dtype.scalar)

        return approximate

    interpreter.InterpreterBuilder.create_sqrt = flushed(np.sqrt)
    interpreter.InterpreterBuilder.create_rsqrt = flushed(lambda x: 1 / np.sqrt(x))


def hasten() -> None:
    """Patches this process."""
    patch_once_a_kernel()
    interpreter._get_np_dtype = remembered(interpreter._get_np_dtype)
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    remember_types()


def remember_types() -> None:
    """Types of blocks and shapes of tensors, of which there are few, are made once."""
    make_type, make_tensor = tl.core.block_type.__init__, tl.core.tensor.__init__
    broadcast = semantic.TritonSemantic.broadcast_impl_value
    types: dict[tuple, dict] = {}
    shapes: dict[tuple, tuple] = {}

    def block_type(self, element_ty, shape):
        key = (element_ty.name, *(getattr(each, "value", each) for each in shape))
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = vars(self).copy()
        vars(self).update(types[key], element_ty=element_ty)

    def tensor(self, handle, type):
        key = tuple(type.shape.values) if type.is_block() else ()
        if key not in shapes:
            make_tensor(self, handle, type)
            shapes[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[key]

    def broadcast_impl_value(self, lhs, rhs):
        alike = lhs.type.is_block() and rhs.type.is_block() and lhs.shape is rhs.shape
        return (lhs, rhs) if alike else broadcast(self, lhs, rhs)

    tl.core.block_type.__init__, tl.core.tensor.__init__ = block_type, tensor
    semantic.TritonSemantic.broadcast_impl_value = broadcast_impl_value


def patch_once_a_kernel() -> None:
    """Lets what has been replaced be, until the kernel ends."""
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
