// Calls every kernel on small, odd and ragged problems, each array on a heap of its own exact size, so that
// the sanitizers see a read or a write past any end. Also checks what no sanitizer does: that results are
// finite.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "dmlfast.h"

#if defined(__SANITIZE_THREAD__)
// libgomp synchronises in ways that ThreadSanitizer does not see; std::thread in ways that it does.
#include <thread>

static thread_local int thread_number = 0, team_size = 1;

extern "C" int omp_get_thread_num() {
  return thread_number;
}
extern "C" int omp_get_num_threads() {
  return team_size;
}
extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> team;
  for (unsigned i = 0; i < threads; i++)
    team.emplace_back([=] {
      thread_number = int(i), team_size = int(threads);
      body(data);
    });
  for (std::thread& thread : team) thread.join();
}
#endif

namespace {

int failures = 0;

void expect(bool fact, const char* what, const dml_pairs& p) {
  if (fact) return;
  failures++;
  std::printf("%s: %s (n %ld, m %ld, d %ld)\n", dml_cpu_isa(), what, long(p.n), long(p.m), long(p.d));
}

template <class T>
using Array = std::unique_ptr<T[]>;

Array<float> numbers(int64_t size, std::mt19937& random) {
  Array<float> out(new float[size]);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < size; i++) out[i] = normal(random);
  return out;
}

Array<int64_t> integers(int64_t size, int64_t least, int64_t greatest, std::mt19937& random) {
  Array<int64_t> out(new int64_t[size]);
  for (int64_t i = 0; i < size; i++) out[i] = std::uniform_int_distribution<int64_t>(least, greatest)(random);
  return out;
}

bool all_finite(const Array<float>& values, int64_t size, bool or_minus_infinity = false) {
  for (int64_t i = 0; i < size; i++)
    if (!std::isfinite(values[i]) && !(or_minus_infinity && values[i] == -INFINITY)) return false;
  return true;
}

struct Problem {
  std::mt19937 random;
  Array<float> rows, columns, bias;
  Array<int64_t> row_labels, column_labels, self_index;
  dml_pairs pairs;

  // Columns of their own where m >= 0.
  Problem(int64_t n, int64_t m, int64_t d, int64_t classes, int threads)
      : random(unsigned(n + 31 * m + d)),
        rows(numbers(n * d, random)),
        row_labels(integers(n, 1, classes, random)),
        pairs{rows.get(), nullptr, n, n, d, row_labels.get(), row_labels.get(), nullptr, threads} {
    if (m >= 0) {
      columns = numbers(m * d, random);
      column_labels = integers(m, 1, classes, random);
      self_index = integers(n, -1, m, random);
      pairs.columns = columns.get(), pairs.column_labels = column_labels.get();
      pairs.self_index = self_index.get(), pairs.m = m;
    }
    for (int64_t k = 0; k < d && n > 3; k++) rows[3 * d + k] = rows[k];  // duplicates
    bias = numbers(pairs.m, random);
  }

  void reduce_and_differentiate(int32_t score, int32_t select, int32_t reduce, float scale, bool biased) {
    const int64_t n = pairs.n, m = pairs.m, d = pairs.d;
    const bool both = pairs.columns && !biased;
    const dml_term term{score, select, reduce, scale, 0.5f, biased ? bias.get() : nullptr};
    const int64_t values = reduce == DML_LOGSUMEXP || reduce == DML_SUM ? 1 : 2;
    Array<float> row_stat(new float[values * n]), column_stat(both ? new float[values * m] : nullptr);
    Array<float> row_grad = numbers(n, random), column_grad = both ? numbers(m, random) : nullptr;
    dml_cpu_pair_reduce(&pairs, &term, row_stat.get(), column_stat.get());
    expect(all_finite(row_stat, values * n, true), "statistics of the rows", pairs);
    expect(!both || all_finite(column_stat, values * m, true), "statistics of the columns", pairs);
    Array<float> d_rows(new float[n * d]), d_columns(pairs.columns ? new float[m * d] : nullptr);
    Array<float> d_bias(biased ? new float[m] : nullptr);
    dml_cpu_pair_grad(&pairs, &term, row_stat.get(), row_grad.get(), column_stat.get(), column_grad.get(),
                      d_rows.get(), d_columns.get(), d_bias.get());
    expect(all_finite(d_rows, n * d), "gradient of the rows", pairs);
    expect(!d_columns || all_finite(d_columns, m * d), "gradient of the columns", pairs);
    expect(!d_bias || all_finite(d_bias, m), "gradient of the bias", pairs);
  }

  void lifted() {
    const int64_t n = pairs.n, m = pairs.m, d = pairs.d;
    Array<float> loss(new float[1]), d_rows(new float[n * d]);
    Array<float> d_columns(pairs.columns ? new float[m * d] : nullptr);
    dml_cpu_lifted(&pairs, 1.0f, loss.get(), nullptr, nullptr);
    expect(all_finite(loss, 1), "loss without gradient", pairs);
    dml_cpu_lifted(&pairs, 1.0f, loss.get(), d_rows.get(), d_columns.get());
    expect(all_finite(loss, 1), "loss", pairs);
    expect(all_finite(d_rows, n * d), "gradient of the rows of the loss", pairs);
    expect(!d_columns || all_finite(d_columns, m * d), "gradient of the columns of the loss", pairs);
  }

  void triplet(int32_t mining) {
    const int64_t n = pairs.n, m = pairs.m, d = pairs.d;
    Array<float> loss(new float[1]), d_rows(new float[n * d]);
    Array<float> d_columns(pairs.columns ? new float[m * d] : nullptr);
    dml_cpu_triplet(&pairs, 0.5f, mining, DML_MEAN, loss.get(), nullptr, nullptr);
    expect(all_finite(loss, 1), "triplets without gradient", pairs);
    dml_cpu_triplet(&pairs, 0.5f, mining, DML_NONZERO, loss.get(), d_rows.get(), d_columns.get());
    expect(all_finite(loss, 1), "triplets", pairs);
    expect(all_finite(d_rows, n * d), "gradient of the rows of triplets", pairs);
    expect(!d_columns || all_finite(d_columns, m * d), "gradient of the columns of triplets", pairs);
  }
};

void run(int64_t n, int64_t m, int64_t d, int64_t classes, int threads) {
  Problem problem(n, m, d, classes, threads);
  problem.lifted();
  for (int32_t mining : {DML_ALL_TRIPLETS, DML_SEMIHARD, DML_HARDEST}) problem.triplet(mining);
  for (int32_t score : {DML_DOT, DML_DISTANCE})
    for (int32_t select : {DML_NEGATIVE, DML_POSITIVE, DML_OTHER, DML_ALL})
      for (int32_t reduce : {DML_LOGSUMEXP, DML_SUM, DML_SQUARED_HINGE})
        for (bool biased : {false, true})
          problem.reduce_and_differentiate(score, select, reduce, biased ? -1.0f : 25.0f, biased);
}

// Rows against classes, their cosines kept in so many bytes.
void softmax(int64_t n, int64_t c, int64_t d, float scale, int64_t scratch, int threads) {
  std::mt19937 random(unsigned(n + 31 * c + d));
  Array<float> rows = numbers(n * d, random), weight = numbers(c * d, random), target = numbers(n, random);
  Array<float> row_weight = numbers(n, random), logsumexp(new float[n]);
  Array<float> d_rows(new float[n * d]), d_weight(new float[c * d]);
  Array<int64_t> labels = integers(n, -1, c - 1, random);
  std::fill(weight.get(), weight.get() + d, 0.0f);
  const dml_classes classes{rows.get(), weight.get(), n, c, d, labels.get(), threads};
  const dml_pairs shape{nullptr, nullptr, n, c, d, nullptr, nullptr, nullptr, threads};
  for (bool want_rows : {false, true})
    for (bool want_weight : {false, true}) {
      dml_cpu_softmax(&classes, scale, scratch, target.get(), row_weight.get(), logsumexp.get(),
                      want_rows ? d_rows.get() : nullptr, want_weight ? d_weight.get() : nullptr);
      expect(all_finite(logsumexp, n, true), "log-sum-exps over classes", shape);
    }
  expect(all_finite(d_rows, n * d), "gradient of the rows of a softmax", shape);
  expect(all_finite(d_weight, c * d), "gradient of the classes", shape);
}

// Rows and the class of each, either a row of zeros here and there, and rows that do not count.
void own(int64_t n, int64_t d, int threads) {
  std::mt19937 random(unsigned(n + d));
  const int64_t c = n / 2 + 1;
  const Array<float> rows = numbers(n * d, random), weight = numbers(c * d, random);
  const Array<float> classes = numbers(n * d, random), logsumexp = numbers(n, random);
  const Array<float> row_weight = numbers(n, random), others = numbers(n, random);
  const Array<int64_t> labels(new int64_t[n]), known(new int64_t[n]);
  for (int64_t i = 0; i < n; i++) labels[i] = i % 5 == 4 ? -100 : i % c;
  const Array<float> pairs(new float[5 * n]), losses(new float[n]);
  const Array<float> d_rows = numbers(n * d, random), d_classes(new float[n * d]);
  std::fill(rows.get(), rows.get() + std::min<int64_t>(n, 2) * d, 0.0f);
  std::fill(weight.get(), weight.get() + std::min<int64_t>(n, 1) * d, 0.0f);
  const dml_pairs shape{nullptr, nullptr, n, n, d, nullptr, nullptr, nullptr, threads};
  for (bool gathered : {false, true}) {
    dml_own own{rows.get(), weight.get(), labels.get(), n, c, d, -100};
    own.scale = 20, own.cosine_margin = 0.1f, own.margin_cosine = 0.8f, own.margin_sine = 0.6f;
    own.smoothing = 0.1f, own.gathered = gathered, own.threads = threads;
    if (gathered) own.weight = classes.get();
    int64_t unknown = 0;
    dml_cpu_own_pairs(&own, known.get(), pairs.get(), &unknown);
    expect(unknown == -1 && all_finite(pairs, 5 * n), "rows and their classes", shape);
    own.labels = known.get();
    for (bool of_rows : {false, true}) {
      dml_cpu_own_losses(&own, pairs.get(), logsumexp.get(), row_weight.get(),
                         of_rows ? nullptr : others.get(), losses.get(), of_rows ? d_rows.get() : nullptr,
                         of_rows ? nullptr : d_classes.get());
      expect(all_finite(losses, n), "losses of rows", shape);
    }
    expect(all_finite(d_rows, n * d), "gradient of the angles for rows", shape);
    expect(all_finite(d_classes, n * d), "gradient of the angles for classes", shape);
    if (!n) continue;
    own.labels = labels.get();
    labels[n - 1] = c;
    dml_cpu_own_pairs(&own, known.get(), pairs.get(), &unknown);
    expect(unknown == n - 1, "a label that is no class", shape);
    labels[n - 1] = 0;
  }
}

// Rows at length 1; one of zeros, one too long and one too short for squares.
void normalize(int64_t n, int64_t d, int threads) {
  std::mt19937 random(unsigned(n + d));
  const Array<float> rows = numbers(n * d, random), grad = numbers(n * d, random);
  const Array<float> units(new float[n * d]), d_rows(new float[n * d]);
  const float scales[] = {0, 1e30f, 1e-30f};
  for (int64_t k = 0; k < std::min<int64_t>(n, 3) * d; k++) rows[k] *= scales[k / d];
  const dml_pairs shape{nullptr, nullptr, n, n, d, nullptr, nullptr, nullptr, threads};
  dml_cpu_normalize(rows.get(), n, d, threads, units.get());
  dml_cpu_normalize_grad(grad.get(), rows.get(), n, d, threads, d_rows.get());
  expect(all_finite(units, n * d) && all_finite(d_rows, n * d), "rows at length 1", shape);
}

// Boosted learners on groups of columns.
void boosted(int64_t n, const std::vector<int64_t>& groups, int threads) {
  std::mt19937 random(n + threads);
  int64_t d = 0;
  for (int64_t group : groups) d += group;
  const Array<float> x = numbers(n * d, random);
  const Array<int64_t> y(new int64_t[n]);
  for (int64_t i = 0; i < n; i++) y[i] = random() % (n / 3 + 1);
  const dml_pairs pairs{x.get(), nullptr, n, n, d, y.get(), nullptr, nullptr, threads};
  const auto learners = int64_t(groups.size());
  for (int32_t base : {DML_DEVIANCE, DML_CONTRASTIVE})
    for (int32_t boosting : {DML_ETA, DML_ADDITIVE, DML_DERIVATIVE, DML_UNBOOSTED}) {
      const dml_boosting b{base, boosting, 2.0f, 0.5f, 25.0f, 0.5f, groups.data(), learners};
      const Array<float> losses(new float[learners]), d_rows(new float[n * d]);
      dml_cpu_boosted(&pairs, &b, losses.get(), nullptr);
      expect(all_finite(losses, learners), "boosted without gradient", pairs);
      dml_cpu_boosted(&pairs, &b, losses.get(), d_rows.get());
      expect(all_finite(losses, learners) && all_finite(d_rows, n * d), "boosted", pairs);
    }
}

// Scores of pairs by a metric unit.
void metric_unit(int64_t n, int64_t m, int64_t d, int64_t u, int64_t v, int64_t h, int threads) {
  std::mt19937 random(n + d);
  const Array<float> x = numbers(n * d, random), r = numbers(std::max<int64_t>(m, 0) * d, random);
  for (int64_t k = 0; k < d && n > 1; k++) x[d + k] = -x[k];  // opposite rows take a way of their own
  const Array<float> of_u = numbers(u * d, random), of_v = numbers(v * d, random),
                     of_h = numbers(h * (u + v), random), biases = numbers(u + v + h + 1, random),
                     score = numbers(h, random);
  const bool own = m < 0;
  const int64_t columns = own ? n : m, count = n && columns ? 37 : 0;
  const dml_pairs pairs{x.get(), own ? nullptr : r.get(), n, columns, d, nullptr, nullptr, nullptr, threads};
  const Array<int64_t> i(new int64_t[count]), j(new int64_t[count]);
  for (int64_t k = 0; k < count; k++) i[k] = random() % n, j[k] = random() % columns;
  for (int32_t normalize : {0, 1}) {
    const float* b = biases.get();
    const dml_unit unit{of_u.get(),    b, of_v.get(), b + u, of_h.get(), b + u + v, score.get(),
                        b + u + v + h, u, v,          h,     normalize};
    const Array<float> all(new float[n * columns]), some(new float[count]);
    dml_cpu_pddm_matrix(&pairs, &unit, all.get());
    dml_cpu_pddm_pairs(&pairs, &unit, i.get(), j.get(), count, some.get());
    expect(all_finite(all, n * columns) && all_finite(some, count), "scores of a unit", pairs);
    for (int64_t k = 0; k < count; k++)
      expect(all[i[k] * columns + j[k]] == some[k], "a pair by itself", pairs);
  }
}

}  // namespace

int main() {
  dml_cpu_poison(1);
  for (const char* isa : {"avx512", "avx2", "generic"}) {
    if (dml_cpu_set_isa(isa)) continue;
    for (int threads : {1, 2}) {
      for (int64_t n : {0, 1, 7, 31, 67, 257}) run(n, -1, 5, n / 3 + 1, threads);
      for (int64_t d : {1, 16, 17, 33, 263}) run(19, 23, d, 5, threads);
      run(131, 17, 3, 20, threads), run(17, 131, 3, 20, threads), run(0, 5, 3, 2, threads);
      run(5, 0, 3, 2, threads), run(67, 71, 4, 1, threads), run(131, -1, 4, 1, threads);
      for (int64_t d : {1, 17, 33})
        for (int64_t scratch : {0, 400000, 1 << 24}) softmax(259, 531, d, 20.0f, scratch, threads);
      for (int64_t n : {0, 1, 7, 67})
        for (int64_t d : {1, 16, 33}) own(n, d, threads), normalize(n, d, threads);
      normalize(1000, 33, threads);
      softmax(1, 1, 3, 1.0f, 1 << 24, threads), softmax(7, 2, 5, 50.0f, 1 << 24, threads);
      softmax(1030, 9, 4, 50.0f, 0, threads), softmax(3, 1000, 8, 5.0f, 1 << 24, threads);
    }
    std::printf("%s done\n", isa);
  }
  return failures != 0;
}
