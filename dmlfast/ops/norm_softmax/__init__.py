"""The normalised softmax loss over classes."""

from dmlfast.ops.norm_softmax.op import norm_softmax_loss

__all__ = ["norm_softmax_loss"]
