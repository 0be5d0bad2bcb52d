"""Exact nearest neighbours, tile by tile."""

import importlib.util
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dmlfast.errors import UserError
from dmlfast.retrieval.arrays import Array, to_tensor
from dmlfast.retrieval.codes import hamming_distances, unpack
from dmlfast.retrieval.pair_scorer import PairScorer

QUERY_TILE = 256  # a tile of distances, 4 MiB in float64, stays in the cache
GALLERY_TILE = 2048
GPU_TILES = 2048, 2048  # a GPU takes few and large ones: the host waits at each
SCORE_TILES = 64, 1024  # of queries and gallery, for what makes rows of all pairs of a tile
FAR = torch.iinfo(torch.int64).max  # the key of no neighbour
NEAR = 2.0**-20  # share of |x|^2 below which a squared distance is taken from the difference itself
PAIR_BYTES = 2**22  # of differences of pairs at a time, which stay in the cache

FAISS_MIN_GALLERY = 8192
FAISS_MAX_K = 256
FAISS_SPARE = 32  # candidates beyond k, so that rounding in float32 seldom costs a second search


def nearest_neighbours(
    queries: Array,
    gallery: Array,
    k: int,
    *,
    exclude: Array | None = None,
    distance: str | PairScorer = "euclidean",
    backend: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest rows of `gallery` for each row of `queries`.

    queries: (Q, D), gallery: (M, D), finite floats; tensors are searched on the device of
    `queries`. exclude: (Q,) integers, for each query the row of the gallery that it is itself and
    that it must not find, or -1. distance: "euclidean", "cosine" (one minus the cosine; a zero
    vector has distance 0 to another and 1 to all else), also by the name that files have for it,
    "angular", or "hamming", the number of bits that differ, for codes (Q, W) and (M, W) uint8 as
    `binarize` packs them; or a `PairScorer`: a pair's distance is then minus its score, which may
    be negative. backend: "torch", "faiss" (proposes candidates in float32, and what it cannot
    settle goes to torch; counts bits exactly; knows no scores), or "auto", which takes FAISS where
    it is installed and quicker. The result does not depend on the backend.

    Returns indices (Q, k) int64 and distances (Q, k) float32, nearest first. A distance is computed
    in float64 and rounded once, from the difference itself for near pairs, and a score in float32;
    equal distances are ordered by index. Where there are fewer than k neighbours, the rest is -1
    and infinity. Extra memory is a copy of the inputs, the result and at most 256 MiB, or
    some 100 + 2 D MiB for a `PairScorer` where no kernel serves it.

    Raises ValueError where an argument has the wrong shape or value, UserError where FAISS is asked
    for and not there.
    """
    scorer = distance if isinstance(distance, PairScorer) else None
    distance = "cosine" if distance == "angular" else distance
    if scorer is None and distance not in ("euclidean", "cosine", "hamming"):
        raise ValueError(
            "distance must be euclidean, cosine (or angular), hamming or a PairScorer, not"
            f" '{distance}'"
        )
    if backend not in ("auto", "torch", "faiss"):
        raise ValueError(f"backend must be auto, torch or faiss, not '{backend}'")
    if backend == "faiss" and scorer:
        raise ValueError("FAISS cannot search by a PairScorer")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    kind = _codes if distance == "hamming" else _floats
    x, r = kind("queries", queries), kind("gallery", gallery)
    if x.ndim != 2 or r.ndim != 2 or x.shape[1] != r.shape[1]:
        raise ValueError(
            f"queries {tuple(x.shape)} and gallery {tuple(r.shape)} must be (Q, D) and (M, D)"
        )
    x, r = _alike(x, r)
    own = torch.full((len(x),), -1) if exclude is None else torch.as_tensor(exclude).long()
    if own.shape != (len(x),):
        raise ValueError(f"exclude must have shape ({len(x)},), not {tuple(own.shape)}")
    if scorer and x.shape[1] != scorer.dimension:
        raise ValueError(f"the unit scores {scorer.dimension} dimensions, not {x.shape[1]}")
    if distance == "cosine":
        x, r = _directions(x), _directions(r)

    if backend == "faiss" and x.device.type != "cpu":
        raise ValueError(f"FAISS searches on the CPU, and queries are on {x.device}")
    if backend == "auto":
        backend = "faiss" if _faiss_pays(x, r, k, distance) else "torch"
    keys = torch.full((len(x), k), FAR, device=x.device)
    width = min(k, len(r))
    if width and len(x):
        search = _search_faiss if backend == "faiss" else _search_torch
        keys[:, :width] = search(x, r, width, own.to(x.device), distance)
    return _decode(keys)


def paired_distances(x: np.ndarray, y: np.ndarray, *, distance: str = "euclidean") -> np.ndarray:
    """The distance of each row of x (N, D) to the same row of y (N, D), (N,) float32.

    As `nearest_neighbours` gives it.
    """
    left, right = _alike(_floats("x", x), _floats("y", y))
    if distance == "cosine":
        left, right = _directions(left), _directions(right)
    d2 = (left.double() - right.double()).square_().sum(1)
    return (d2.div_(2) if distance == "cosine" else d2.sqrt_()).float().numpy()


def _search_torch(
    x: torch.Tensor, r: torch.Tensor, k: int, own: torch.Tensor, distance: str | PairScorer
) -> torch.Tensor:
    """The k least keys of every query, (Q, k), ascending; FAR where there is no neighbour left."""
    if isinstance(distance, PairScorer):
        return _search_scores(x, r, k, own, distance)
    if distance == "hamming":
        return _search_tiles(x, r, k, own, unpack, hamming_distances)
    centre = sum(part.double().sum(0) for part in r.split(GALLERY_TILE)) / len(r)
    centre = centre.to(x.dtype).double()  # rounded, so that equal rows are centred to exact zeros

    def centred(rows: torch.Tensor) -> torch.Tensor:
        return rows.double() - centre

    def distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        d2 = _squared_distances(rows, columns)
        return d2.div_(2) if distance == "cosine" else d2.sqrt_()

    return _search_tiles(x, r, k, own, centred, distances)


def _search_scores(
    x: torch.Tensor, r: torch.Tensor, k: int, own: torch.Tensor, scorer: PairScorer
) -> torch.Tensor:
    """As `_search_torch`, by minus the score."""
    scores = scorer.scores_on(x.device)

    def distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return 0 - scores(rows, columns)  # which is never -0, and -0 would stand before 0

    with torch.no_grad():
        sides = scorer.rows(x), scorer.rows(r)
        return _search_tiles(*sides, k, own, lambda rows: rows, distances, SCORE_TILES)


def _search_tiles(
    x: torch.Tensor,
    r: torch.Tensor,
    k: int,
    own: torch.Tensor,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    distances: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    tiles: tuple[int, int] | None = None,
) -> torch.Tensor:
    """As `_search_torch`, by the distances (q, m) of prepared rows and prepared columns."""
    height, width = tiles or (GPU_TILES if x.is_cuda else (QUERY_TILE, GALLERY_TILE))
    tile = max(width, k)
    best = torch.full((len(x), k), FAR, device=x.device)
    for start in range(0, len(r), tile):
        columns = prepare(r[start : start + tile])
        for first in range(0, len(x), height):
            rows = slice(first, first + height)
            keys = _encode(distances(prepare(x[rows]), columns), start)
            inside = (own[rows] >= start) & (own[rows] < start + len(columns))
            keys[inside, own[rows][inside] - start] = FAR
            best[rows] = _least(torch.cat([best[rows], keys], dim=1), k, ordered=False)
    return best.sort(dim=1).values


def _squared_distances(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """(q, m) float64: by the Gram matrix, and by differences where that loses digits."""
    x_norms = x.square().sum(1, keepdim=True)
    d2 = torch.addmm(x_norms + r.square().sum(1), x, r.T, alpha=-2)
    near = d2 < NEAR * x_norms
    count = int(near.count_nonzero())
    if count > near.numel() // 16:
        return torch.cdist(x, r, compute_mode="donot_use_mm_for_euclid_dist").square_()
    if count:
        pairs = near.nonzero()
        for part in pairs.split(max(1, PAIR_BYTES // (8 * x.shape[1]))):
            i, j = part.unbind(1)
            d2[i, j] = (x[i] - r[j]).square_().sum(1)
    return d2.clamp_(min=0)


def _search_faiss(
    x: torch.Tensor, r: torch.Tensor, k: int, own: torch.Tensor, distance: str | PairScorer
) -> torch.Tensor:
    """As `_search_torch`, which searches only for rows that FAISS's candidates leave in doubt."""
    try:
        import faiss
    except ImportError:
        raise UserError(
            "FAISS is not installed: pip install 'dmlfast[cpu]', or search with torch"
        ) from None
    if distance == "hamming":
        return _search_binary_index(faiss.IndexBinaryFlat(8 * r.shape[1]), x, r, k, own)
    M, D = r.shape
    halve = distance == "cosine"
    power = _power_above(x, r)  # squares neither overflow nor vanish in float32
    centre = (r.mean(0, dtype=torch.float64) / power).to(x.dtype)
    queries, others = ((side / power - centre).float().contiguous() for side in (x, r))
    wanted = min(M, k + 1 + FAISS_SPARE)
    approximate, candidates = faiss.knn(queries.numpy(), others.numpy(), wanted)
    index = torch.from_numpy(candidates)

    d2 = torch.empty(index.shape, dtype=torch.float64)
    step = max(1, PAIR_BYTES // (8 * D * wanted))
    for first in range(0, len(x), step):
        rows = slice(first, first + step)
        d2[rows] = r[index[rows]].double().sub_(x[rows, None]).square_().sum(2)
    keys = _encode(d2 / 2 if halve else d2.sqrt(), 0, index)
    keys[index == own[:, None]] = FAR
    best = _least(keys, k)

    # A row outside the candidates is at least as far as the last of them, within rounding of
    # rounding * (|x|^2 + |r|^2) <= rounding * (3 |x|^2 + 2 d^2), and what vanishes.
    rounding, vanished = (D + 16) * 2.0**-22, D * 2.0**-140
    bound = torch.from_numpy(approximate[:, -1]).double() - vanished
    bound = (bound - 3 * rounding * queries.double().square().sum(1)) / (1 + 2 * rounding)
    bound = bound.clamp_(min=0) * power**2
    bound = bound / 2 if halve else bound.sqrt()
    doubt = (_encode(bound[:, None], 0)[:, 0] <= best[:, -1]) & (wanted < M)
    if doubt.any():
        best[doubt] = _search_torch(x[doubt], r, k, own[doubt], distance)
    return best


def _power_above(*sides: torch.Tensor) -> float:
    """The least power of two above every component, 1 where all are 0."""
    largest = max(float(torch.maximum(-low, high)) for low, high in map(torch.aminmax, sides))
    return 2.0 ** math.frexp(largest)[1]


def _search_binary_index(
    index: Any, x: torch.Tensor, r: torch.Tensor, k: int, own: torch.Tensor
) -> torch.Tensor:
    """As `_search_torch` for codes, by FAISS's flat index.

    The index goes through the gallery in order and takes a row in only if it is nearer than the
    last that it holds, so of equal rows it keeps the first. Of k + 1 neighbours k are not the query
    itself.
    """
    index.add(r.contiguous().numpy())
    distances, candidates = index.search(x.contiguous().numpy(), min(len(r), k + 1))
    rows = torch.from_numpy(candidates)
    keys = _encode(torch.from_numpy(distances), 0, rows)
    keys[rows == own[:, None]] = FAR
    return _least(keys, k)


def _faiss_pays(x: torch.Tensor, r: torch.Tensor, k: int, distance: str | PairScorer) -> bool:
    large = len(r) >= FAISS_MIN_GALLERY and len(x) >= 32 and k <= FAISS_MAX_K
    floats = isinstance(distance, str) and x.dtype == torch.float32
    quicker = distance == "hamming" or (large and floats)
    # On macOS the two libraries' OpenMP runtimes abort the process when they meet.
    usable = sys.platform == "linux" and importlib.util.find_spec("faiss") is not None
    return quicker and x.device.type == "cpu" and usable


def _encode(distances: torch.Tensor, start: int, index: torch.Tensor | None = None) -> torch.Tensor:
    """Keys that sort by (float32 distance, index): the distance's bits above the index."""
    bits = _ordered(distances.float().view(torch.int32)).long()
    if index is None:
        index = torch.arange(start, start + distances.shape[1], device=distances.device)
    return bits.bitwise_left_shift_(32).bitwise_or_(index)


def _decode(keys: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    found = keys != FAR
    indices = torch.where(found, keys & (2**32 - 1), -1)
    distances = _ordered((keys >> 32).int()).view(torch.float32).masked_fill(~found, torch.inf)
    return indices.cpu().numpy(), distances.cpu().numpy()


def _ordered(bits: torch.Tensor) -> torch.Tensor:
    """Bits of floats as int32 that sort as the floats do, and those as the bits again."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _least(keys: torch.Tensor, k: int, *, ordered: bool = True) -> torch.Tensor:
    return keys.topk(min(k, keys.shape[1]), dim=1, largest=False, sorted=ordered).values


def _floats(name: str, array: Array) -> torch.Tensor:
    """float32, or float64 if it is that already; finite as the former."""
    tensor = to_tensor(array)
    if not all(bool(part.float().isfinite().all()) for part in tensor.split(GALLERY_TILE)):
        raise ValueError(f"{name} hold NaN or infinity as float32")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _alike(x: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the wider of their types, on the device of x."""
    wider = torch.promote_types(x.dtype, r.dtype)
    return x.to(wider), r.to(x.device, wider)


def _codes(name: str, array: Array) -> torch.Tensor:
    tensor = to_tensor(array)
    if tensor.dtype != torch.uint8:
        raise ValueError(f"hamming distance is of codes in uint8, and {name} are {tensor.dtype}")
    return tensor


def _directions(x: torch.Tensor) -> torch.Tensor:
    """Rows of length 1; a last column is 1 for zero rows, which puts them at a right angle."""
    rows = torch.zeros(len(x), x.shape[1] + 1, dtype=x.dtype, device=x.device)
    for first in range(0, len(x), GALLERY_TILE):
        part = x[first : first + GALLERY_TILE].double()
        norms = torch.linalg.vector_norm(part, dim=1, keepdim=True)
        rows[first : first + GALLERY_TILE, :-1] = part / norms.where(norms > 0, 1.0)
        rows[first : first + GALLERY_TILE, -1] = norms[:, 0] == 0
    return rows
