"""Triton decides when it is imported whether it compiles its kernels or interprets them."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
