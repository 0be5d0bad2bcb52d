// The triplet loss: bands of anchors with their distances from all columns, which become the weights of their
// pairs, and gradients from these.
#pragma once

#include "anchor.h"
#include "gradient.h"

namespace DML_ISA {

class Triplet {
 public:
  Triplet(const dml_pairs& problem, float margin, int mining, bool want_rows, bool want_columns)
      : pairs_(problem, DML_DISTANCE, DML_POSITIVE, problem.columns == nullptr, want_rows || want_columns),
        margin_(margin),
        mining_(mining),
        want_rows_(want_rows),
        want_columns_(pairs_.symmetric ? want_rows : want_columns),
        band_rows_(std::clamp<int64_t>(band_floats / (pairs_.columns().n + 1) / VL * VL, VL, 64)),
        found_(pairs_.rows().n) {
    if (want_rows_) rows_ = zero_gradient(pairs_.rows());
    if (want_columns_) columns_ = zero_gradient(pairs_.columns());
  }

  bool finite() const { return pairs_.finite(); }

  // As many bands at a time as there are threads. Their rows are theirs alone; columns get what the bands add
  // one after another, so that the order of sums does not depend on the number of threads.
  void run() {
    const int64_t bands = round_up(pairs_.rows().n, band_rows_) / band_rows_;
    std::vector<std::unique_ptr<Band>> works;
    for (int64_t k = 0; k < std::min<int64_t>(pairs_.threads, bands); k++)
      works.emplace_back(new Band(pairs_.columns(), band_rows_));
    for (int64_t first = 0; first < bands; first += works.size()) {
      const int64_t count = std::min<int64_t>(works.size(), bands - first);
      parallel_for(pairs_.threads, count, [&](int64_t k) { take(*works[k], first + k); });
      if (!want_columns_) continue;
      parallel_for(pairs_.threads, works[0]->tiles, [&](int64_t t) {
        for (int64_t k = 0; k < count; k++) add_to_columns(*works[k], t);
      });
    }
    if (pairs_.symmetric && want_rows_) add_columns_to_rows();
  }

  // The number that sums are multiplied by.
  double share(int reduction) const {
    int64_t of = 0;
    for (const Triplets& t : found_) of += reduction == DML_NONZERO ? t.above : t.count;
    return reduction == DML_TOTAL ? 1.0 : 1.0 / double(std::max<int64_t>(of, 1));
  }
  double sum() const {
    double sum = 0;
    for (const Triplets& t : found_) sum += t.sum;
    return sum;
  }
  void write_rows(float share, float* out) const { write_gradient(pairs_, pairs_.rows(), rows_, share, out); }
  void write_columns(float share, float* out) const {
    write_gradient(pairs_, pairs_.columns(), columns_, share, out);
  }

 private:
  static constexpr int64_t band_floats = 1 << 20;
  // A pair by its difference costs about as much as this many in a product.
  static constexpr int64_t sparse = 16;

  // The pairs of some anchors, in tiles of columns.
  struct Band {
    Range rows;
    const int64_t tiles, tile_floats;
    Buffer<float> pairs;  // [tile][row][tile_stride]: distances, then weights over distances
    Buffer<float> strip;
    std::vector<char> close, dense;             // by tile
    std::vector<std::vector<ClosePair>> apart;  // by tile, those that are in no product
    Anchor anchor;

    Band(const Side& columns, int64_t height)
        : tiles(round_up(columns.n, Schedule::tile) / Schedule::tile),
          tile_floats(height * tile_stride),
          pairs(tiles * tile_floats),
          strip((height + MR) * NR),
          close(tiles),
          dense(tiles),
          apart(tiles),
          anchor(columns) {}
    float* row(int64_t t, int64_t r) { return pairs.data() + t * tile_floats + r * tile_stride; }
  };

  Tile tile_of(const Band& band, int64_t t) const {
    return {band.rows, {t * Schedule::tile, std::min(pairs_.columns().n, (t + 1) * Schedule::tile)}, false};
  }

  void take(Band& band, int64_t index) {
    band.rows = {index * band_rows_, std::min(pairs_.rows().n, (index + 1) * band_rows_)};
    for (int64_t t = 0; t < band.tiles; t++) find_distances(band, t);
    std::vector<int64_t> weighed(band.tiles, 0);
    for (int64_t i = band.rows.begin; i < band.rows.end; i++) {
      read_anchor(band, i);
      const int64_t negatives = pairs_.columns().n - own_label(i).size();
      found_[i] = band.anchor.take(mining_, margin_, negatives);
      if (!want_rows_ && !want_columns_) continue;
      for (int64_t t = 0; t < band.tiles; t++) weighed[t] += weigh(band, t, i, found_[i].above > 0);
    }
    if (!want_rows_ && !want_columns_) return;
    for (int64_t t = 0; t < band.tiles; t++) {
      const Tile tile = tile_of(band, t);
      band.dense[t] = weighed[t] * sparse > tile.rows.size() * tile.columns.size();
      if (weighed[t] > 0 && !band.dense[t]) set_apart(band, t);
      if (want_rows_) add_to_rows(band, t);
    }
  }

  void find_distances(Band& band, int64_t t) {
    const Tile tile = tile_of(band, t);
    band.close[t] = false;
    band.apart[t].clear();
    for_each_strip(tile, [&](const Strip& strip) {
      band.close[t] |= pairs_.scores(band.rows, strip, band.strip.data());
      for (int64_t r = 0; r < band.rows.size(); r++)
        for (int v = 0; v < strip.vectors; v++)
          store(band.row(t, r) + strip.column() + v * VL, load(band.strip.data() + r * NR + v * VL));
    });
  }

  // The columns of the label of row i.
  Range own_label(int64_t i) const {
    const Side& columns = pairs_.columns();
    const int32_t* labels = columns.label.data();
    const auto own = std::equal_range(labels, labels + columns.n, pairs_.rows().label[i]);
    return {own.first - labels, own.second - labels};
  }

  void read_anchor(Band& band, int64_t i) const {
    Anchor& anchor = band.anchor;
    const int64_t r = i - band.rows.begin, m = pairs_.columns().n;
    for (int64_t t = 0; t < band.tiles; t++) {
      const Range columns = tile_of(band, t).columns;
      std::copy_n(band.row(t, r), columns.size(), anchor.distance.data() + columns.begin);
    }
    std::fill(anchor.distance.data() + m, anchor.distance.data() + anchor.distance.size(), Anchor::infinity);
    const int64_t self = pairs_.symmetric ? i : pairs_.self(i);
    const Range own = own_label(i);
    anchor.positives.clear();
    for (int64_t j = own.begin; j < own.end; j++) {
      if (j != self) anchor.positives.push_back({anchor.distance[j], j});
      anchor.distance[j] = Anchor::infinity;
    }
  }

  // Turns the distances of a row of a tile into weights over distances, those of close pairs apart. How many
  // are not zero.
  int64_t weigh(Band& band, int64_t t, int64_t i, bool some) {
    const Range columns = tile_of(band, t).columns;
    float* row = band.row(t, i - band.rows.begin);
    if (!some) {
      std::fill_n(row, tile_stride, 0.0f);
      return 0;
    }
    const float norm = pairs_.rows().norm[i];
    vi weighed = {};
    for (int64_t c = 0; c < columns.size(); c += VL) {
      const int64_t j = columns.begin + c;
      const vf w = load(band.anchor.weight.data() + j), distance = load(row + c);
      const vi counts = (w != 0.0f) & (distance > 0.0f);
      vf v = {};
      if (any(counts)) {
        v = keep(counts, w * reciprocal(distance));
        const vf norms = load(pairs_.columns().norm.data() + j) + norm;
        const vi close = counts & (distance * distance < norms * close_share);
        if (band.close[t] && any(close)) {
          for (int lane = 0; lane < VL; lane++)
            if (close[lane]) band.apart[t].push_back({i, j + lane, v[lane]});
          v = keep(~close, v);
        }
        weighed -= counts;
      }
      store(row + c, v);
    }
    int64_t count = 0;
    for (int lane = 0; lane < VL; lane++) count += weighed[lane];
    return count;
  }

  // Takes all pairs of a tile out of its product.
  void set_apart(Band& band, int64_t t) {
    const Range columns = tile_of(band, t).columns;
    for (int64_t i = band.rows.begin; i < band.rows.end; i++) {
      const float* row = band.row(t, i - band.rows.begin);
      for (int64_t c = 0; c < columns.size(); c++)
        if (row[c] != 0) band.apart[t].push_back({i, columns.begin + c, row[c]});
    }
  }

  void add_to_rows(Band& band, int64_t t) {
    const Tile tile = tile_of(band, t);
    for (const ClosePair& pair : band.apart[t]) add_to_row(pair, pairs_, rows_);
    if (!band.dense[t]) return;
    std::fill(band.row(t, tile.rows.size()), band.row(t, band_rows_), 0.0f);  // in whole groups of rows
    add_weighted_columns(band.row(t, 0), tile, pairs_.columns(), rows_);
    for (int64_t r = 0; r < tile.rows.size(); r++) {
      vf sum = {};
      for (int64_t c = 0; c < tile.columns.size(); c += VL) sum += load(band.row(t, r) + c);
      rows_.weight[tile.rows.begin + r] += hsum(sum);
    }
  }

  void add_to_columns(Band& band, int64_t t) {
    const Tile tile = tile_of(band, t);
    for (const ClosePair& pair : band.apart[t]) add_to_column(pair, pairs_, columns_);
    if (!band.dense[t]) return;
    add_weighted_rows(band.row(t, 0), tile, pairs_.rows(), columns_);
    for (int64_t c = 0; c < tile.columns.size(); c++) {
      float sum = 0;
      for (int64_t r = 0; r < tile.rows.size(); r++) sum += band.row(t, r)[c];
      columns_.weight[tile.columns.begin + c] += sum;
    }
  }

  void add_columns_to_rows() {
    parallel_for(pairs_.threads, pairs_.rows().d_panels(), [&](int64_t panel) {
      const int64_t stride = pairs_.rows().spread_stride(), end = (panel + 1) * stride;
      for (int64_t k = panel * stride; k < end; k++) rows_.sum[k] += columns_.sum[k];
    });
    for (int64_t i = 0; i < pairs_.rows().n; i++) rows_.weight[i] += columns_.weight[i];
  }

  const Pairs pairs_;
  const float margin_;
  const int mining_;
  const bool want_rows_, want_columns_;
  const int64_t band_rows_;
  std::vector<Triplets> found_;  // by position of the anchor
  Gradient rows_, columns_;
};

}  // namespace DML_ISA
