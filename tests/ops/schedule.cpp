// Runs the schedule of the kernels with a body that does nothing but check it: every pair of blocks once, and
// every block served in turn, however the threads interleave.
#include <cstdio>

#define DML_ISA generic
#include "cpu/schedule.h"

std::atomic<bool> poison_buffers{false};

using generic::Schedule;
using generic::Task;

int main() {
  const int64_t sizes[] = {0, 1, 128, 129, 300, 640, 641, 4096, 5000, 20000, 140000};
  for (bool symmetric : {true, false})
    for (int64_t n : sizes)
      for (int64_t m : sizes) {
        if (symmetric && m != n) continue;
        const Schedule schedule(n, m, symmetric);
        const int64_t rows = (n + schedule.row_block_size() - 1) / schedule.row_block_size();
        const int64_t columns = (m + schedule.column_block_size() - 1) / schedule.column_block_size();
        std::vector<int> pairs(rows * columns);
        std::vector<int32_t> turns(rows + columns);
        const int64_t repeats = 1 + 3000 / (1 + schedule.size());
        bool right = true;
        for (int64_t repeat = 0; repeat < repeats; repeat++) {
          std::fill(turns.begin(), turns.end(), 0);
          schedule.run(4, [&](int, int64_t, const Task& task, auto& wait) {
            wait();
            int32_t& row = turns[task.row_block];
            int32_t& column = turns[symmetric ? task.column_block : rows + task.column_block];
            if (row++ != task.row_turn) right = false;
            if (&row != &column && column++ != task.column_turn) right = false;
            pairs[task.row_block * columns + task.column_block]++;
          });
        }
        for (int64_t i = 0; i < rows; i++)
          for (int64_t j = 0; j < columns; j++)
            right &= pairs[i * columns + j] == (symmetric && i > j ? 0 : repeats);
        if (right) continue;
        std::printf("wrong for %ld x %ld rows%s\n", long(n), long(m), symmetric ? " with themselves" : "");
        return 1;
      }
  std::printf("right\n");
}
