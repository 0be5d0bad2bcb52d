"""Rows at length 1."""

from dmlfast.ops.normalize.op import normalize

__all__ = ["normalize"]
