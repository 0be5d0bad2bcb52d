// The C interface: the kernels compiled for the best instruction set of this machine.
#include <atomic>
#include <cstring>

#include "../dmlfast.h"

std::atomic<bool> poison_buffers{false};

#define DML_DECLARE(isa)                                                                                   \
  namespace isa {                                                                                          \
  int pair_reduce(const dml_pairs*, const dml_term*, float*, float*);                                      \
  int pair_grad(const dml_pairs*, const dml_term*, const float*, const float*, const float*, const float*, \
                float*, float*, float*);                                                                   \
  int lifted(const dml_pairs*, float, float*, float*, float*);                                             \
  int triplet(const dml_pairs*, float, int32_t, int32_t, float*, float*, float*);                          \
  int softmax(const dml_classes*, float, int64_t, const float*, const float*, float*, float*, float*);     \
  int own_pairs(const dml_own*, int64_t*, float*, int64_t*);                                               \
  int own_losses(const dml_own*, const float*, const float*, const float*, const float*, float*, float*,   \
                 float*);                                                                                  \
  int boosted(const dml_pairs*, const dml_boosting*, float*, float*);                                      \
  int normalize(const float*, int64_t, int64_t, int32_t, float*);                                          \
  int normalize_grad(const float*, const float*, int64_t, int64_t, int32_t, float*);                       \
  int pddm_matrix(const dml_pairs*, const dml_unit*, float*);                                              \
  int pddm_pairs(const dml_pairs*, const dml_unit*, const int64_t*, const int64_t*, int64_t, float*);      \
  }

DML_DECLARE(generic)
#ifdef DML_WITH_AVX2
DML_DECLARE(avx2)
#endif
#ifdef DML_WITH_AVX512
DML_DECLARE(avx512)
#endif

namespace {

struct Kernels {
  const char* isa;
  decltype(&generic::pair_reduce) pair_reduce;
  decltype(&generic::pair_grad) pair_grad;
  decltype(&generic::lifted) lifted;
  decltype(&generic::triplet) triplet;
  decltype(&generic::softmax) softmax;
  decltype(&generic::own_pairs) own_pairs;
  decltype(&generic::own_losses) own_losses;
  decltype(&generic::boosted) boosted;
  decltype(&generic::normalize) normalize;
  decltype(&generic::normalize_grad) normalize_grad;
  decltype(&generic::pddm_matrix) pddm_matrix;
  decltype(&generic::pddm_pairs) pddm_pairs;
};

#define DML_KERNELS(isa)                                                                             \
  Kernels {                                                                                          \
    #isa, isa::pair_reduce, isa::pair_grad, isa::lifted, isa::triplet, isa::softmax, isa::own_pairs, \
        isa::own_losses, isa::boosted, isa::normalize, isa::normalize_grad, isa::pddm_matrix,        \
        isa::pddm_pairs                                                                              \
  }

const Kernels* find(const char* name) {
  static const Kernels generic_kernels = DML_KERNELS(generic);
#ifdef DML_WITH_AVX512
  static const Kernels avx512_kernels = DML_KERNELS(avx512);
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  if (has_avx512 && (!name || !std::strcmp(name, "avx512"))) return &avx512_kernels;
#endif
#ifdef DML_WITH_AVX2
  static const Kernels avx2_kernels = DML_KERNELS(avx2);
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && (!name || !std::strcmp(name, "avx2"))) return &avx2_kernels;
#endif
  return !name || !std::strcmp(name, "generic") ? &generic_kernels : nullptr;
}

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
  const Kernels* k = chosen.load();
  if (!k) chosen.store(k = find(nullptr));
  return *k;
}

}  // namespace

int dml_cpu_pair_reduce(const dml_pairs* p, const dml_term* t, float* row_out, float* column_out) {
  return kernels().pair_reduce(p, t, row_out, column_out);
}
int dml_cpu_pair_grad(const dml_pairs* p, const dml_term* t, const float* row_stat, const float* row_grad,
                      const float* column_stat, const float* column_grad, float* d_rows, float* d_columns,
                      float* d_bias) {
  return kernels().pair_grad(p, t, row_stat, row_grad, column_stat, column_grad, d_rows, d_columns, d_bias);
}
int dml_cpu_lifted(const dml_pairs* p, float margin, float* loss, float* d_rows, float* d_columns) {
  return kernels().lifted(p, margin, loss, d_rows, d_columns);
}
int dml_cpu_triplet(const dml_pairs* p, float margin, int32_t mining, int32_t reduction, float* loss,
                    float* d_rows, float* d_columns) {
  return kernels().triplet(p, margin, mining, reduction, loss, d_rows, d_columns);
}
int dml_cpu_softmax(const dml_classes* p, float scale, int64_t scratch_bytes, const float* target,
                    const float* row_weight, float* logsumexp, float* d_rows, float* d_weight) {
  return kernels().softmax(p, scale, scratch_bytes, target, row_weight, logsumexp, d_rows, d_weight);
}
int dml_cpu_own_pairs(const dml_own* p, int64_t* known, float* pairs, int64_t* unknown) {
  return kernels().own_pairs(p, known, pairs, unknown);
}
int dml_cpu_own_losses(const dml_own* p, const float* pairs, const float* logsumexp, const float* row_weight,
                       const float* others, float* losses, float* d_rows, float* d_classes) {
  return kernels().own_losses(p, pairs, logsumexp, row_weight, others, losses, d_rows, d_classes);
}
int dml_cpu_boosted(const dml_pairs* p, const dml_boosting* b, float* losses, float* d_rows) {
  return kernels().boosted(p, b, losses, d_rows);
}
int dml_cpu_normalize(const float* rows, int64_t n, int64_t d, int32_t threads, float* out) {
  return kernels().normalize(rows, n, d, threads, out);
}
int dml_cpu_normalize_grad(const float* grad, const float* rows, int64_t n, int64_t d, int32_t threads,
                           float* out) {
  return kernels().normalize_grad(grad, rows, n, d, threads, out);
}
int dml_cpu_pddm_matrix(const dml_pairs* p, const dml_unit* u, float* scores) {
  return kernels().pddm_matrix(p, u, scores);
}
int dml_cpu_pddm_pairs(const dml_pairs* p, const dml_unit* u, const int64_t* i, const int64_t* j,
                       int64_t count, float* scores) {
  return kernels().pddm_pairs(p, u, i, j, count, scores);
}
#ifndef DML_INTERFACE
#define DML_INTERFACE 0
#endif
uint32_t dml_cpu_interface(void) {
  return DML_INTERFACE;
}

const char* dml_cpu_isa(void) {
  return kernels().isa;
}
int dml_cpu_set_isa(const char* name) {
  const Kernels* k = find(name);
  if (k) chosen.store(k);
  return k ? 0 : 1;
}
void dml_cpu_poison(int on) {
  poison_buffers.store(on != 0);
}
