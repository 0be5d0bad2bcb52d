// One anchor of the triplet loss: of its distances become its triplets and the weights of its pairs.
#pragma once

#include <functional>

#include "pairs.h"

namespace DML_ISA {

// Triplets with their hinges max(0, D_ap - D_an + margin).
struct Triplets {
  double sum = 0;
  int64_t above = 0;  // hinges above 0
  int64_t count = 0;
};

// How many of n ascending values come before x.
template <class Before>
inline int64_t count_before(const float* values, int64_t n, float x, Before before) {
  const float* base = values;
  while (n > 1) {  // without a branch that could be mispredicted
    const int64_t half = n / 2;
    base += before(base[half - 1], x) ? half : 0;
    n -= half;
  }
  return base - values + (n == 1 && before(*base, x));
}

class Anchor {
 public:
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  struct Column {
    float distance;
    int64_t position;
  };

  // distance: of the negatives by position, infinity at all others. weight: d sum of hinges / d distance,
  // zeros until triplets are taken. Both are padded to whole vectors.
  Buffer<float> distance, weight;
  std::vector<Column> positives;

  explicit Anchor(const Side& columns)
      : distance(columns.panels() * VL), weight(columns.panels() * VL), columns_(columns) {}

  Triplets take(int mining, float margin, int64_t negatives) {
    weight.fill(0);
    if (positives.empty() || negatives == 0) return {};
    if (mining == DML_HARDEST) return take_hardest(margin);
    std::sort(positives.begin(), positives.end(), [](const Column& a, const Column& b) {
      return a.distance != b.distance ? a.distance < b.distance : a.position < b.position;
    });
    Triplets found = mining == DML_SEMIHARD      ? take_semihard(margin)
                     : positives.size() <= a_few ? take_all_of_few(margin)
                                                 : take_all_of_many(margin);
    found.count = int64_t(positives.size()) * (mining == DML_SEMIHARD ? 1 : negatives);
    return found;
  }

 private:
  static constexpr size_t a_few = 16;

  // Every negative against each positive.
  Triplets take_all_of_few(float margin) {
    const int count = int(positives.size());
    vf threshold[a_few], exceeded[a_few] = {};
    for (int p = 0; p < count; p++) threshold[p] = splat(positives[p].distance + margin);
    Triplets found;
    const int64_t end = distance.size(), chunk = 64 * VL;  // of which sums are float32
    for (int64_t first = 0; first < end; first += chunk) {
      vf sum = {};
      for (int64_t j = first; j < std::min(first + chunk, end); j += VL) {
        const vf d = load(distance.data() + j);
        if (!any(d < threshold[count - 1])) continue;
        vf above = {};
        for (int p = 0; p < count; p++) {
          const vf gap = threshold[p] - d;
          const vf one = keep(gap > 0.0f, splat(1.0f));
          sum += max(gap, vf{});
          above += one;
          exceeded[p] += one;
        }
        store(weight.data() + j, -above);
      }
      found.sum += hsum(sum);
    }
    for (int p = 0; p < count; p++) {
      const float above = hsum(exceeded[p]);
      weight[positives[p].position] = above;
      found.above += int64_t(above);
    }
    return found;
  }

  // The positives whose hinge with a negative is above 0 are its k furthest, by binary search.
  Triplets take_all_of_many(float margin) {
    const int64_t count = int64_t(positives.size());
    std::vector<float> threshold(count);
    std::vector<double> furthest(count + 1, 0.0);  // sum of the k greatest thresholds
    std::vector<int64_t> negatives(count + 1, 0);  // how many have k positives
    for (int64_t p = 0; p < count; p++) threshold[p] = positives[p].distance + margin;
    for (int64_t k = 0; k < count; k++) furthest[k + 1] = furthest[k] + threshold[count - 1 - k];
    Triplets found;
    for (int64_t j = 0; j < distance.size(); j++) {
      const float d = distance[j];
      if (!(d < threshold.back())) continue;
      const int64_t k = count - count_before(threshold.data(), count, d, std::less_equal<float>());
      found.sum += furthest[k] - double(k) * d;
      found.above += k;
      negatives[k]++;
      weight[j] = -float(k);
    }
    int64_t above = 0;
    for (int64_t k = count; k > 0; k--) {
      above += negatives[k];
      weight[positives[count - k].position] = float(above);
    }
    return found;
  }

  // Each positive with the nearest negative beyond it, or with the furthest where there is none.
  Triplets take_semihard(float margin) {
    const std::vector<Column> nearest =
        positives.size() <= a_few ? nearest_beyond_few() : nearest_beyond_many();
    const Column furthest = furthest_negative();
    Triplets found;
    for (size_t p = 0; p < positives.size(); p++)
      add(found, positives[p], nearest[p].position < 0 ? furthest : nearest[p], margin);
    return found;
  }

  std::vector<Column> nearest_beyond_few() const {
    const int count = int(positives.size());
    vf least[a_few];
    std::fill_n(least, count, splat(infinity));
    for (int64_t j = 0; j < distance.size(); j += VL) {
      const vf d = load(distance.data() + j);
      for (int p = 0; p < count; p++) {
        const vf beyond = ::DML_ISA::select(d > positives[p].distance, d, splat(infinity));
        least[p] = min(least[p], beyond);
      }
    }
    std::vector<Column> nearest(count, Column{infinity, -1});
    for (int p = 0; p < count; p++)
      if (const float d = hmin(least[p]); d < infinity) nearest[p] = first_at(d);
    return nearest;
  }

  // By binary search: what is beyond k positives is nearest to those of them that nothing nearer is beyond.
  std::vector<Column> nearest_beyond_many() const {
    const int64_t count = int64_t(positives.size());
    std::vector<float> nearer(count);
    for (int64_t p = 0; p < count; p++) nearer[p] = positives[p].distance;
    std::vector<Column> nearest(count + 1, Column{infinity, -1});
    auto take = [this](Column& best, const Column& other) {
      if (other.distance < best.distance || (other.distance == best.distance && other.distance < infinity &&
                                             precedes(other.position, best.position)))
        best = other;
    };
    for (int64_t j = 0; j < distance.size(); j++)
      take(nearest[count_before(nearer.data(), count, distance[j], std::less<float>())], {distance[j], j});
    for (int64_t k = count - 1; k > 0; k--) take(nearest[k], nearest[k + 1]);
    nearest.erase(nearest.begin());
    return nearest;
  }

  // The furthest positive with the nearest negative.
  Triplets take_hardest(float margin) {
    Column positive = positives[0];
    for (const Column& p : positives)
      if (p.distance > positive.distance) positive = p;
    vf least = splat(infinity);
    for (int64_t j = 0; j < distance.size(); j += VL) least = min(least, load(distance.data() + j));
    Triplets found;
    found.count = 1;
    add(found, positive, first_at(hmin(least)), margin);
    return found;
  }

  static vf min(vf a, vf b) { return -max(-a, -b); }
  static float hmin(vf a) { return -hmax(-a); }

  Column furthest_negative() const {
    vf most = splat(-infinity);
    for (int64_t j = 0; j < distance.size(); j += VL) {
      const vf d = load(distance.data() + j);
      most = max(most, ::DML_ISA::select(d < infinity, d, splat(-infinity)));
    }
    return first_at(hmax(most));
  }

  // Of the columns at a distance the one that comes first as they were given.
  Column first_at(float d) const {
    Column found{d, -1};
    for (int64_t j = 0; j < distance.size(); j += VL) {
      const vi here = load(distance.data() + j) == d;
      if (!any(here)) continue;
      for (int lane = 0; lane < VL; lane++)
        if (here[lane] && (found.position < 0 || precedes(j + lane, found.position)))
          found.position = j + lane;
    }
    return found;
  }

  bool precedes(int64_t a, int64_t b) const { return columns_.order[a] < columns_.order[b]; }

  void add(Triplets& found, const Column& positive, const Column& negative, float margin) {
    const float hinge = positive.distance - negative.distance + margin;
    if (!(hinge > 0 && hinge < infinity)) return;  // distances of huge rows overflow
    found.sum += hinge;
    found.above++;
    weight[positive.position] += 1;
    weight[negative.position] -= 1;
  }

  const Side& columns_;
};

}  // namespace DML_ISA
