// The C interface of the compiled kernels. Arrays are contiguous, matrices row-major, statistics and
// gradients float32. Functions return 0, or DML_OUT_OF_MEMORY. The maths stands in the README of each op.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DML_API __attribute__((visibility("default")))

enum dml_score { DML_DOT = 0, DML_DISTANCE = 1 };
enum dml_select { DML_NEGATIVE = 0, DML_POSITIVE = 1, DML_OTHER = 2, DML_ALL = 3 };
// DML_HINGE sums max(0, term), DML_SQUARED_HINGE its square, DML_SOFTPLUS log(1 + exp(term)), a smooth hinge.
enum dml_reduce {
  DML_LOGSUMEXP = 0,
  DML_SUM = 1,
  DML_HINGE = 2,
  DML_SQUARED_HINGE = 3,
  DML_SOFTPLUS = 4,
  DML_MAX = 5
};
enum dml_mining { DML_ALL_TRIPLETS = 0, DML_SEMIHARD = 1, DML_HARDEST = 2 };
enum dml_reduction { DML_NONZERO = 0, DML_MEAN = 1, DML_TOTAL = 2 };
enum dml_base { DML_DEVIANCE = 0, DML_CONTRASTIVE = 1 };
enum dml_boost { DML_ETA = 0, DML_ADDITIVE = 1, DML_DERIVATIVE = 2, DML_UNBOOSTED = 3 };
enum dml_status { DML_OK = 0, DML_OUT_OF_MEMORY = 1 };

// Rows against columns. columns = NULL: the rows against themselves, row i being its own column i.
struct dml_pairs {
  const float* rows;     // (n, d)
  const float* columns;  // (m, d) or NULL
  int64_t n, m, d;
  const int64_t* row_labels;     // (n,); NULL where the selection looks at no label
  const int64_t* column_labels;  // (m,)
  const int64_t* self_index;  // (n,): the column that is row i itself, -1 for none; or NULL for none at all
  int32_t threads;
};

// term = scale * score + offset + column_bias[j], over the selected columns j of row i whose term is above
// row_floor[i]. With floors there are statistics of the rows alone; DML_MAX has no floors and no gradient.
struct dml_term {
  int32_t score, select, reduce;
  float scale, offset;
  const float* column_bias;  // (m,) or NULL; with columns of their own and statistics of the rows alone
  const float* row_floor;    // (n,) or NULL
};

// Rows against classes, each with one row of weights.
struct dml_classes {
  const float* rows;    // (n, d)
  const float* weight;  // (c, d)
  int64_t n, c, d;
  const int64_t* labels;  // (n,): the row's own class, -1 for none
  int32_t threads;
};

// Rows and the class of each, and how a row's logit of its own class and its loss are made of the angle.
struct dml_own {
  const float* rows;      // (n, d)
  const float* weight;    // (c, d), or (n, d) where gathered: the class of each row
  const int64_t* labels;  // (n,)
  int64_t n, c, d;
  int64_t ignore_index;              // the label of rows that do not count
  float scale, cosine_margin;        // logit = scale (cos(angle + angular margin) - cosine_margin)
  float margin_cosine, margin_sine;  // of the angular margin
  float smoothing;                   // of labels, over all c classes
  int32_t gathered, threads;
};

// A position-dependent metric unit: linear layers, weights (out, in), by the names of its README.
struct dml_unit {
  const float *difference_weight, *difference_bias;  // (difference_dim, d)
  const float *mean_weight, *mean_bias;              // (mean_dim, d)
  const float *joint_weight, *joint_bias;            // (joint_dim, difference_dim + mean_dim)
  const float *score_weight, *score_bias;            // (1, joint_dim)
  int64_t difference_dim, mean_dim, joint_dim;
  int32_t normalize_inputs;
};

// Learners on groups of columns, boosted.
struct dml_boosting {
  int32_t base, boosting;
  float beta1, beta2, negative_cost;  // of the deviance
  float margin;                       // of the contrastive loss
  const int64_t* groups;              // (learners,): how many columns each has, in their order
  int64_t learners;
};

// row_out (n,): the reduction over the columns of each row. column_out (m,) or NULL: over the rows of each
// column. Of hinges row_out is (2, n) and column_out (2, m): the sums, and then the numbers of those above 0.
DML_API int dml_cpu_pair_reduce(const struct dml_pairs*, const struct dml_term*, float* row_out,
                                float* column_out);

// Gradients of sum_i row_grad[i] row_stat[i] + sum_j column_grad[j] column_stat[j], where the statistics are
// those of dml_cpu_pair_reduce (or include further columns). d_rows, d_columns, d_bias may be NULL; so may
// column_stat together with column_grad. Without columns of their own the column statistics are not given:
// each row is in both roles.
DML_API int dml_cpu_pair_grad(const struct dml_pairs*, const struct dml_term*, const float* row_stat,
                              const float* row_grad, const float* column_stat, const float* column_grad,
                              float* d_rows, float* d_columns, float* d_bias);

// The lifted structured loss, and its gradients where d_rows or d_columns is not NULL.
DML_API int dml_cpu_lifted(const struct dml_pairs*, float margin, float* loss, float* d_rows,
                           float* d_columns);

// The triplet loss, and its gradients where d_rows or d_columns is not NULL.
DML_API int dml_cpu_triplet(const struct dml_pairs*, float margin, int32_t mining, int32_t reduction,
                            float* loss, float* d_rows, float* d_columns);

// logsumexp (n,): of scale * cosine of a row with all classes but its own, -inf over none. Where d_rows or
// d_weight is not NULL, the gradients of sum_i row_weight[i] softplus(logsumexp[i] - target[i]), through the
// normalisation of both sides. Cosines are kept for them in at most scratch_bytes.
DML_API int dml_cpu_softmax(const struct dml_classes*, float scale, int64_t scratch_bytes,
                            const float* target, const float* row_weight, float* logsumexp, float* d_rows,
                            float* d_weight);

// known (n,): labels, -1 of rows that do not count. pairs (5, n), 0 of such rows: inverse lengths of rows and
// of classes, 0 of zeros; at length 1 the squared lengths of the difference and of the sum of both; logits.
// unknown: the first row whose label is no class, and then nothing else is written, or -1.
DML_API int dml_cpu_own_pairs(const struct dml_own*, int64_t* known, float* pairs, int64_t* unknown);

// losses (n,): of the rows, from the log-sum-exps of all other classes, and where labels are smoothed from
// the rows at length 1 times the sum of all classes, `others` (n,). Their gradients by the angles, times
// row_weight (n,), are added to d_rows and put into d_classes (n, d); either may be NULL. pairs and labels
// are those that dml_cpu_own_pairs gives.
DML_API int dml_cpu_own_losses(const struct dml_own*, const float* pairs, const float* logsumexp,
                               const float* row_weight, const float* others, float* losses, float* d_rows,
                               float* d_classes);

// out (n, d): rows (n, d) at length 1, zeros of those without a length.
DML_API int dml_cpu_normalize(const float* rows, int64_t n, int64_t d, int32_t threads, float* out);

// out (n, d): the gradient of the rows from that of the rows at length 1, grad (n, d).
DML_API int dml_cpu_normalize_grad(const float* grad, const float* rows, int64_t n, int64_t d,
                                   int32_t threads, float* out);

// scores (n, m): of all pairs by the unit. No labels are looked at.
DML_API int dml_cpu_pddm_matrix(const struct dml_pairs*, const struct dml_unit*, float* scores);

// scores (count,): of rows i[k] with columns j[k], or with rows j[k] where columns = NULL.
DML_API int dml_cpu_pddm_pairs(const struct dml_pairs*, const struct dml_unit*, const int64_t* i,
                               const int64_t* j, int64_t count, float* scores);

// losses (learners,): of each learner over all pairs, by its base loss and the weights of boosting. d_rows,
// or NULL: the gradient of their sum.
DML_API int dml_cpu_boosted(const struct dml_pairs*, const struct dml_boosting*, float* losses,
                            float* d_rows);

DML_API uint32_t dml_cpu_interface(void);       // the CRC-32 of this file as it was compiled, or 0
DML_API const char* dml_cpu_isa(void);          // "avx512", "avx2" or "generic"
DML_API int dml_cpu_set_isa(const char* name);  // 0, or 1 where this machine or build lacks it
DML_API void dml_cpu_poison(int on);            // for tests: fill fresh memory with NaN

#ifdef __cplusplus
}
#endif
