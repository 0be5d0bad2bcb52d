// One side of a pair problem: its rows ordered by label, packed for the tile products, with squared norms.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace DML_ISA {

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

using Order = std::vector<int64_t>;  // position -> row of the input

inline Order order_by_label(const int64_t* labels, int64_t n) {
  Order order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  if (!std::is_sorted(labels, labels + n))
    std::sort(order.begin(), order.end(), [labels](int64_t a, int64_t b) {
      return labels[a] != labels[b] ? labels[a] < labels[b] : a < b;
    });
  return order;
}

struct Side {
  const float* x = nullptr;  // (n, d), as given
  int64_t n = 0, d = 0;
  Order order;
  std::vector<int32_t> label;  // dense rank of the label by position, padded to whole panels with -1
  Buffer<float> packed;        // [panel][d][VL] rows minus the mean, for the product of rows with rows
  Buffer<float> spread;        // [panel of d][position][VL] the same values, for weights times rows
  Buffer<float> norm;          // |x - mean|^2 by position, padded by a strip
  float max_norm = 0;          // the largest |x - mean|
  bool finite = true;

  int64_t panels() const { return round_up(n, VL) / VL; }
  int64_t d_panels() const { return round_up(d, VL) / VL; }
  int64_t spread_stride() const { return panels() * VL * VL; }  // from one panel of d to the next
  const float* row(int64_t position) const { return x + order[position] * d; }
};

// The mean of the rows of both sides (d,), in an order that does not depend on the number of threads.
inline std::vector<float> mean_row(const Side& a, const Side* b, int threads) {
  constexpr int64_t chunk = 1024;
  const int64_t d = a.d, chunks_a = round_up(a.n, chunk) / chunk;
  const int64_t chunks = chunks_a + (b ? round_up(b->n, chunk) / chunk : 0);
  std::vector<float> partial(chunks * d, 0.0f), mean(d);
  parallel_for(threads, chunks, [&](int64_t c) {
    const Side& side = c < chunks_a ? a : *b;
    const int64_t first = (c < chunks_a ? c : c - chunks_a) * chunk;
    float* sum = partial.data() + c * d;
    for (int64_t i = first; i < std::min(first + chunk, side.n); i++)
      for (int64_t k = 0; k < d; k++) sum[k] += side.x[i * d + k];
  });
  const int64_t rows = a.n + (b ? b->n : 0);
  for (int64_t k = 0; k < d; k++) {
    double sum = 0;
    for (int64_t c = 0; c < chunks; c++) sum += partial[c * d + k];
    mean[k] = float(sum / double(rows));
  }
  return mean;
}

// Packs VL rows of a side, panel p, of which load(i, k, width) gives values from the k-th on; `visit` sees
// every packed vector. The buffers that a side has are filled.
template <class Load, class Visit>
inline void pack_panel(Side& side, int64_t p, Load&& load, Visit&& visit) {
  for (int64_t q = 0; q < side.d_panels(); q++) {
    const int64_t k = q * VL, width = std::min<int64_t>(VL, side.d - k);
    vf block[VL];
    for (int r = 0; r < VL; r++) {
      const int64_t i = p * VL + r;
      block[r] = i < side.n ? load(i, k, width) : vf{};
      if (side.spread) store(side.spread.data() + q * side.spread_stride() + i * VL, block[r]);
    }
    if (!side.packed) continue;
    transpose(block);
    for (int64_t c = 0; c < width; c++) {
      store(side.packed.data() + (p * side.d + k + c) * VL, block[c]);
      visit(block[c]);
    }
  }
}

// Packs the rows of a side, whose x, n, d, order and label are set. Rows past the end are zero.
inline void pack(Side& side, const std::vector<float>& mean, bool with_spread, int threads) {
  const int64_t n = side.n, d = side.d, panels = side.panels();
  side.packed = Buffer<float>(panels * d * VL);
  side.norm = Buffer<float>(panels * VL + NR);
  std::fill_n(side.norm.data() + panels * VL, NR, 0.0f);
  if (with_spread) side.spread = Buffer<float>(side.d_panels() * side.spread_stride());
  parallel_for(threads, panels, [&](int64_t p) {
    vd squared = {};
    pack_panel(
        side, p,
        [&](int64_t i, int64_t k, int64_t width) {
          return load_first(side.row(i) + k, width) - load_first(mean.data() + k, width);
        },
        [&](vf values) {
          const vd wide = __builtin_convertvector(values, vd);
          squared += wide * wide;
        });
    store(side.norm.data() + p * VL, __builtin_convertvector(squared, vf));
  });
  float largest = 0, sum = 0;  // a NaN or an infinity anywhere makes the sum NaN
  for (int64_t i = 0; i < n; i++) {
    largest = std::max(largest, side.norm[i]);
    sum += side.norm[i] * 0.0f;
  }
  side.max_norm = std::sqrt(largest);
  side.finite = sum == 0.0f;
}

// Dense ranks of the labels of both sides, equal where the labels are equal. Without labels every rank is 0.
inline void rank_labels(Side& a, const int64_t* labels_a, Side* b, const int64_t* labels_b) {
  a.label.assign(a.panels() * VL, -1);
  if (b) b->label.assign(b->panels() * VL, -1);
  int64_t i = 0, j = 0, nb = b ? b->n : 0;
  for (int32_t rank = 0; i < a.n || j < nb; rank++) {
    const int64_t next_a = i < a.n ? labels_a[a.order[i]] : 0, next_b = j < nb ? labels_b[b->order[j]] : 0;
    const int64_t value = j >= nb || (i < a.n && next_a < next_b) ? next_a : next_b;
    while (i < a.n && labels_a[a.order[i]] == value) a.label[i++] = rank;
    while (j < nb && labels_b[b->order[j]] == value) b->label[j++] = rank;
  }
}

}  // namespace DML_ISA
