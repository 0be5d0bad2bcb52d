"""Deep metric learning losses as fused streaming kernels, and what one needs around them."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dmlfast")
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = "0+unknown"
