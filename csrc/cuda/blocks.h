// Blocks of weights in memory, and the columns that they are multiplied with.
#pragma once

#include "weights.h"

namespace dml {

// A row has the columns of a tile in an order of its own, in which those of a thread of each half lie beside
// each other: 16 bytes of a thread, lines of 64 bytes of four.
constexpr int IN_LINE = 32;

struct alignas(16) Eight {
  uint32_t pairs[4];
};

// Stores two rows of a thread in lines: line(h) is where a row begins, pair(h, f) has its columns of a
// fragment.
template <class Line, class Pair>
__device__ __forceinline__ void store_in_lines(const Line& line, const Pair& pair) {
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int half = 0; half < TILE / IN_LINE; half++) {
      Eight eight;
#pragma unroll
      for (int k = 0; k < 4; k++) eight.pairs[k] = pair(h, half * 4 + k);
      *reinterpret_cast<Eight*>(line(h) + half * IN_LINE + lane_of() % 4 * 8) = eight;
    }
}

// Which column of a tile is at a place of a row.
__device__ __forceinline__ int column_at(int place) {
  const int half = place / IN_LINE, thread = place % IN_LINE / 8, pair = place % 8 / 2;
  return half * IN_LINE + pair * 8 + thread * 2 + place % 2;
}

}  // namespace dml
