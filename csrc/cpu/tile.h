// Products of packed panels, and the scores of one strip of pairs.
#pragma once

#include "schedule.h"

namespace DML_ISA {

// acc[r][v] += sum over k < depth of a(r, k) * b(k, v), the vectors b(k, v) VL floats apart in k and b_panel
// in v.
template <int A_ROW, int A_STEP, int VECTORS>
inline __attribute__((always_inline)) void multiply(const float* a, const float* b, int64_t b_panel,
                                                    int64_t depth, vf (&acc)[MR][VECTORS]) {
  for (int64_t k = 0; k < depth; k++, a += A_STEP, b += VL) {
    vf operand[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) operand[v] = load(b + v * b_panel);
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) acc[r][v] += operand[v] * a[r * A_ROW];
  }
}

// c += a b for MR rows of c, c_row floats apart. The product is summed on its own first: sums of sums round
// less.
template <int A_ROW, int A_STEP, int VECTORS>
inline void multiply_add(const float* a, const float* b, int64_t b_panel, int64_t depth, float* c,
                         int64_t c_row, int64_t c_panel, bool from_zero) {
  vf acc[MR][VECTORS] = {};
  multiply<A_ROW, A_STEP, VECTORS>(a, b, b_panel, depth, acc);
#pragma GCC unroll 8
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
      float* out = c + r * c_row + v * c_panel;
      store(out, from_zero ? acc[r][v] : load(out) + acc[r][v]);
    }
}

// Calls f(std::integral_constant<int, vectors>, first) for groups of at most NV of `count` vectors. A group
// of one keeps too few accumulators busy, so four vectors that are left are two and two.
template <class F>
inline void in_groups(int64_t count, F&& f) {
  int64_t first = 0;
  for (; first + NV <= count && !(NV == 3 && count - first == 4); first += NV)
    f(std::integral_constant<int, NV>(), first);
  for (; first + 2 <= count; first += 2) f(std::integral_constant<int, 2>(), first);
  if (first < count) f(std::integral_constant<int, 1>(), first);
}

// Columns [begin, begin + vectors * VL) of a tile, its strip number `index`. Its scores lie row by row, NR
// floats apart.
struct Strip {
  const Tile& tile;
  int64_t begin;
  int vectors, index;

  int64_t end() const { return begin + vectors * VL; }
  int64_t column() const { return begin - tile.columns.begin; }  // its first column, counted in the tile
  // The rows of the tile that it reaches: in an upper tile those above the diagonal.
  Range rows() const {
    return {tile.rows.begin, tile.upper ? std::min(tile.rows.end, end()) : tile.rows.end};
  }
};

template <class F>
inline void for_each_strip(const Tile& tile, F&& f) {
  int index = 0;
  in_groups(round_up(tile.columns.size(), VL) / VL, [&](auto vectors, int64_t first) {
    f(Strip{tile, tile.columns.begin + first * VL, int(vectors), index++});
  });
}

// The products <row, column> of packed rows [begin, begin + size) with a strip, in steps over d that stay in
// the inner caches.
inline void strip_products(const Side& rows, Range range, const Side& columns, const Strip& strip,
                           float* out) {
  constexpr int64_t step = 512;
  const int64_t d = rows.d, panel = d * VL;
  const float* b = columns.packed.data() + strip.begin / VL * panel;
  auto with = [&](auto vectors) {
    for (int64_t k = 0; k < d; k += step)
      for (int64_t i = range.begin; i < range.end; i += MR) {
        const float* a = rows.packed.data() + i / VL * panel + k * VL + i % VL;
        multiply_add<1, VL, vectors>(a, b + k * VL, panel, std::min(step, d - k),
                                     out + (i - range.begin) * NR, NR, VL, k == 0);
      }
  };
  if (strip.vectors == 1) return with(std::integral_constant<int, 1>());
  if (strip.vectors == 2) return with(std::integral_constant<int, 2>());
  with(std::integral_constant<int, NV>());
}

inline float squared_difference(const float* a, const float* b, int64_t d) {
  vf sum = {};
  int64_t k = 0;
  for (; k + VL <= d; k += VL) {
    const vf difference = load(a + k) - load(b + k);
    sum += difference * difference;
  }
  float rest = 0;
  for (; k < d; k++) rest += (a[k] - b[k]) * (a[k] - b[k]);
  return hsum(sum) + rest;
}

// |x|^2 + |r|^2 - 2 <x, r> loses a squared distance below this share of the norms to cancellation, and x w -
// r w its gradient: such pairs are computed from their differences.
constexpr float close_share = 1.0f / 1024;

// Turns products into distances, in place; close pairs only where wanted(i, j) holds. True where there are
// any.
template <class Wanted>
inline bool strip_distances(const Side& rows, Range range, const Side& columns, const Strip& strip,
                            float* scores, Wanted&& wanted) {
  const float* column_norm = columns.norm.data() + strip.begin;
  bool some = false;
  for (int64_t i = range.begin; i < range.end; i++) {
    float* s = scores + (i - range.begin) * NR;
    vi near[NV] = {};
    vi found = {};
    for (int v = 0; v < strip.vectors; v++) {
      const vf norms = load(column_norm + v * VL) + rows.norm[i];
      const vf squared = max(norms - load(s + v * VL) * 2.0f, vf{});
      near[v] = squared < norms * close_share;
      found |= near[v];
      store(s + v * VL, squared);
    }
    if (any(found))
      for (int v = 0; v < strip.vectors; v++)
        for (int lane = 0; lane < VL; lane++) {
          const int64_t j = strip.begin + v * VL + lane;
          if (!near[v][lane] || j >= columns.n || !wanted(i, j)) continue;
          s[v * VL + lane] = squared_difference(rows.row(i), columns.row(j), rows.d);
          some = true;
        }
    for (int v = 0; v < strip.vectors; v++) store(s + v * VL, quick_sqrt(load(s + v * VL)));
  }
  return some;
}

// The weights of a tile of pairs, row-major: W[i - rows.begin][j - columns.begin].
constexpr int64_t tile_stride =
    Schedule::tile + 16;  // not a power of two: rows fall into different cache sets
constexpr int64_t tile_floats = (Schedule::tile + MR) * tile_stride;

// The gradient of one side while it is summed: [panel of d][position][VL].
struct Gradient {
  Buffer<float> sum;
  Buffer<double> weight;  // sum of the weights of each row
};

inline Gradient zero_gradient(const Side& side) {
  Gradient g{Buffer<float>(side.d_panels() * side.spread_stride()), Buffer<double>(side.panels() * VL)};
  g.sum.fill(0);
  g.weight.fill(0);
  return g;
}

// Brings in what the next steps of a product read, a group of MR positions of the next panels of b and of c.
template <int VECTORS>
inline __attribute__((always_inline)) void prefetch_next(const float* b, int64_t b_panel, const float* c,
                                                         int64_t c_panel, int64_t position) {
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; v++) {
    prefetch(b + (VECTORS + v) * b_panel + position * VL, MR * VL);
    prefetch(c + v * c_panel + (position + MR) * VL, MR * VL);
  }
}

// gradient of rows += W columns. In an upper tile W is zero below the diagonal.
inline void add_weighted_columns(const float* w, const Tile& tile, const Side& columns, Gradient& gradient) {
  const int64_t stride = columns.spread_stride(), out_stride = gradient.sum.size() / columns.d_panels();
  in_groups(columns.d_panels(), [&](auto vectors, int64_t panel) {
    const float* b = columns.spread.data() + panel * stride + tile.columns.begin * VL;
    float* c = gradient.sum.data() + panel * out_stride + tile.rows.begin * VL;
    for (int64_t i = 0; i < tile.rows.size(); i += MR) {
      const int64_t skip = tile.upper ? i : 0;
      prefetch_next<vectors>(b, stride, c, out_stride, i);
      multiply_add<tile_stride, 1, vectors>(w + i * tile_stride + skip, b + skip * VL, stride,
                                            tile.columns.size() - skip, c + i * VL, VL, out_stride, false);
    }
  });
}

// gradient of columns += W^T rows.
inline void add_weighted_rows(const float* w, const Tile& tile, const Side& rows, Gradient& gradient) {
  const int64_t stride = rows.spread_stride(), out_stride = gradient.sum.size() / rows.d_panels();
  in_groups(rows.d_panels(), [&](auto vectors, int64_t panel) {
    const float* b = rows.spread.data() + panel * stride + tile.rows.begin * VL;
    float* c = gradient.sum.data() + panel * out_stride + tile.columns.begin * VL;
    for (int64_t j = 0; j < tile.columns.size(); j += MR) {
      prefetch_next<vectors>(b, stride, c, out_stride, j);
      const int64_t depth = tile.upper ? std::min<int64_t>(tile.rows.size(), j + MR) : tile.rows.size();
      multiply_add<1, tile_stride, vectors>(w + j, b, stride, depth, c + j * VL, VL, out_stride, false);
    }
  });
}

}  // namespace DML_ISA
