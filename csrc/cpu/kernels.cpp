// The entry points for one instruction set. setup.py compiles this file once for each, with DML_ISA as the
// namespace.
#include "boosted.h"
#include "lifted.h"
#include "norm.h"
#include "own.h"
#include "pddm.h"
#include "softmax.h"
#include "triplet.h"

namespace DML_ISA {

namespace {

constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

void fill(float* out, int64_t size, float value) {
  if (out) std::fill(out, out + size, value);
}

// Pairs of rows with themselves are walked once where each pair counts the same for both of its rows.
bool walk_once(const dml_pairs& p, const dml_term& t) {
  return !p.columns && t.select != DML_ALL && !t.column_bias;
}

template <class F>
int guarded(F&& f) {
  try {
    f();
    return DML_OK;
  } catch (const std::bad_alloc&) {
    return DML_OUT_OF_MEMORY;
  }
}

}  // namespace

int pair_reduce(const dml_pairs* p, const dml_term* t, float* row_out, float* column_out) {
  return guarded([&] {
    const Pairs pairs(*p, t->score, t->select, walk_once(*p, *t), false);
    const Term term(*t, pairs);
    const int64_t values = term.hinge ? 2 : 1;
    if (!pairs.finite() || !term.finite) {
      fill(row_out, values * p->n, nan_value);
      return fill(column_out, values * p->m, nan_value);
    }
    Scores scores(pairs, false);
    Reduction reduction(pairs, term, column_out != nullptr);
    reduction.run(scores);
    for (int64_t i = 0; i < p->n; i++) row_out[pairs.rows().order[i]] = reduction.row(i);
    for (int64_t j = 0; j < p->m && column_out; j++)
      column_out[pairs.columns().order[j]] = reduction.column(j);
    if (!term.hinge) return;
    for (int64_t i = 0; i < p->n; i++) row_out[p->n + pairs.rows().order[i]] = reduction.row_count(i);
    for (int64_t j = 0; j < p->m && column_out; j++)
      column_out[p->m + pairs.columns().order[j]] = reduction.column_count(j);
  });
}

int pair_grad(const dml_pairs* p, const dml_term* t, const float* row_stat, const float* row_grad,
              const float* column_stat, const float* column_grad, float* d_rows, float* d_columns,
              float* d_bias) {
  return guarded([&] {
    const Pairs pairs(*p, t->score, t->select, walk_once(*p, *t), true);
    const Term term(*t, pairs);
    if (!pairs.finite() || !term.finite) {
      fill(d_rows, p->n * p->d, nan_value);
      fill(d_columns, p->m * p->d, nan_value);
      return fill(d_bias, p->m, nan_value);
    }
    Scores scores(pairs, false);
    const Factors rows(pairs.rows(), row_stat, row_grad);
    const Factors columns = column_stat ? Factors(pairs.columns(), column_stat, column_grad) : Factors();
    const bool both_roles = !p->columns && !pairs.symmetric && d_rows;
    std::vector<float> of_columns(both_roles ? p->n * p->d : 0);
    if (both_roles) d_columns = of_columns.data();
    PairGradient<> gradient(pairs, term, rows, columns, d_rows != nullptr, d_columns != nullptr,
                            d_bias != nullptr);
    gradient.run(scores);
    if (d_rows) gradient.write_rows(d_rows);
    if (d_columns) gradient.write_columns(d_columns);
    if (d_bias) gradient.write_bias(d_bias);
    for (size_t k = 0; k < of_columns.size(); k++) d_rows[k] += of_columns[k];
  });
}

int lifted(const dml_pairs* p, float margin, float* loss, float* d_rows, float* d_columns) {
  return guarded([&] {
    const bool with_gradient = d_rows || d_columns;
    Lifted lifted(*p, margin, with_gradient);
    const bool finite = lifted.finite();
    *loss = finite ? lifted.loss() : nan_value;
    if (finite && with_gradient) lifted.gradient(d_rows, d_columns);
    if (finite) return;
    fill(d_rows, p->n * p->d, nan_value);
    fill(d_columns, p->m * p->d, nan_value);
  });
}

int triplet(const dml_pairs* p, float margin, int32_t mining, int32_t reduction, float* loss, float* d_rows,
            float* d_columns) {
  return guarded([&] {
    Triplet triplet(*p, margin, mining, d_rows != nullptr, d_columns != nullptr);
    if (!triplet.finite()) {
      *loss = nan_value;
      fill(d_rows, p->n * p->d, nan_value);
      return fill(d_columns, p->m * p->d, nan_value);
    }
    triplet.run();
    const double share = triplet.share(reduction);
    *loss = float(triplet.sum() * share);
    if (d_rows) triplet.write_rows(float(share), d_rows);
    if (d_columns) triplet.write_columns(float(share), d_columns);
  });
}

int softmax(const dml_classes* p, float scale, int64_t scratch_bytes, const float* target,
            const float* row_weight, float* logsumexp, float* d_rows, float* d_weight) {
  return guarded([&] {
    Softmax softmax(*p, scale, scratch_bytes, d_rows != nullptr, d_weight != nullptr);
    if (softmax.finite()) return softmax.run(target, row_weight, logsumexp, d_rows, d_weight);
    fill(logsumexp, p->n, nan_value);
    fill(d_rows, p->n * p->d, nan_value);
    fill(d_weight, p->c * p->d, nan_value);
  });
}

int own_pairs(const dml_own* p, int64_t* known, float* pairs, int64_t* unknown) {
  return guarded([&] {
    const OwnPairs own(*p);
    *unknown = own.find(known);
    if (*unknown < 0) own.measure(known, pairs);
  });
}

int own_losses(const dml_own* p, const float* pairs, const float* logsumexp, const float* row_weight,
               const float* others, float* losses, float* d_rows, float* d_classes) {
  return guarded(
      [&] { OwnPairs(*p).losses(pairs, logsumexp, row_weight, others, losses, d_rows, d_classes); });
}

int normalize(const float* rows, int64_t n, int64_t d, int32_t threads, float* out) {
  return guarded([&] { normalize_rows(rows, n, d, threads, out); });
}

int normalize_grad(const float* grad, const float* rows, int64_t n, int64_t d, int32_t threads, float* out) {
  return guarded([&] { normalize_gradient(grad, rows, n, d, threads, out); });
}

int pddm_matrix(const dml_pairs* p, const dml_unit* u, float* scores) {
  return guarded([&] {
    PairScorer scorer(*p, *u);
    if (scorer.finite()) return scorer.matrix(scores);
    fill(scores, p->n * p->m, nan_value);
  });
}

int pddm_pairs(const dml_pairs* p, const dml_unit* u, const int64_t* i, const int64_t* j, int64_t count,
               float* scores) {
  return guarded([&] {
    PairScorer scorer(*p, *u);
    if (scorer.finite()) return scorer.pairs(i, j, count, scores);
    fill(scores, count, nan_value);
  });
}

int boosted(const dml_pairs* p, const dml_boosting* b, float* losses, float* d_rows) {
  return guarded([&] {
    Boosted boosted(*p, *b, d_rows != nullptr);
    if (!boosted.finite()) {
      fill(losses, b->learners, nan_value);
      return fill(d_rows, p->n * p->d, nan_value);
    }
    boosted.run(losses);
    if (d_rows) boosted.write(d_rows);
  });
}

}  // namespace DML_ISA
