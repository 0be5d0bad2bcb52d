// Statistics of rows.
#pragma once

#include "pairs.h"

namespace dml {

// Adds up what all parts or slots have: see dml_cuda_reduce.
Status combine(const Pairs&, const float* tops, const float* totals, const float* slots, int count,
               float* value, float* result, void* stream);

}  // namespace dml
