// Which pairs of blocks are computed, in which order, by whom: the same sums in the same order for any number
// of threads.
#pragma once

#include <atomic>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "side.h"

namespace DML_ISA {

// One pair of blocks. It may add to its blocks once each has been served as often as the turn says.
struct Task {
  int32_t row_block, column_block;
  int32_t row_turn, column_turn;
};

// A block's rows [begin, end).
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Rows and columns of at most Schedule::tile. upper: the tile holds its own mirror image, so that only the
// pairs above its diagonal count.
struct Tile {
  Range rows, columns;
  bool upper;
};

class Schedule {
 public:
  // Symmetric: every unordered pair of blocks once, in the rounds of a tournament, so that the pairs of a
  // round share no block. Otherwise every row block against every column block, in the rounds of a Latin
  // square.
  Schedule(int64_t n, int64_t m, bool symmetric)
      : n_(n),
        m_(m),
        row_size_(block_size(n)),
        column_size_(symmetric ? row_size_ : block_size(m)),
        symmetric_(symmetric) {
    const int rows = blocks(n, row_size_), columns = blocks(m, column_size_);
    turns_ = symmetric ? rows : rows + columns;
    std::vector<int32_t> served(turns_, 0);
    auto add = [&](int i, int j) {
      const int column_slot = symmetric ? j : rows + j;
      Task task{i, j, served[i]++, 0};
      task.column_turn = i == column_slot ? task.row_turn : served[column_slot]++;
      tasks_.push_back(task);
    };
    if (symmetric) {
      for (int i = 0; i < rows; i++) add(i, i);
      const int players = rows + rows % 2;  // an odd number leaves one out each round
      for (int round = 0; round + 1 < players; round++)
        for (int k = 0; k < players / 2; k++) {
          const int a = k == 0 ? players - 1 : (round + k) % (players - 1);
          const int b = (round + players - 1 - k) % (players - 1);
          if (a < rows && b < rows) add(std::min(a, b), std::max(a, b));
        }
    } else {
      const int rounds = std::max(rows, columns);
      for (int round = 0; round < rounds; round++)
        for (int k = 0; k < std::min(rows, columns); k++)
          rows < columns ? add(k, (k + round) % columns) : add((k + round) % rows, k);
    }
  }

  // Calls body(worker, task index, task, wait) for every task. After wait() the task alone may add to its
  // blocks, and earlier tasks have added to them before. Where one runs out of memory, all end with it.
  template <class Body>
  void run(int threads, Body&& body) const {
    std::unique_ptr<std::atomic<int32_t>[]> served(new std::atomic<int32_t>[turns_ + 1]);
    for (int i = 0; i <= turns_; i++) served[i] = 0;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const int offset = symmetric_ ? 0 : blocks(n_, row_size_);
    on_each_thread(threads, [&](int worker) {
      for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < int64_t(tasks_.size());) {
        const Task& task = tasks_[k];
        auto& rows = served[task.row_block];
        auto& columns = served[offset + task.column_block];
        auto wait = [&] {
          await(rows, task.row_turn, failed);
          await(columns, task.column_turn, failed);
        };
        try {
          body(worker, k, task, wait);
          wait();
        } catch (...) {
          failed = true;
          throw;
        }
        rows.store(task.row_turn + 1, std::memory_order_release);
        // a block with itself is served once: by now the next task may have raised its count
        if (&columns != &rows) columns.store(task.column_turn + 1, std::memory_order_release);
      }
    });
  }

  int workers(int threads) const {
    return int(std::max<int64_t>(1, std::min<int64_t>(threads, tasks_.size())));
  }
  int64_t size() const { return int64_t(tasks_.size()); }
  int64_t row_block_size() const { return row_size_; }
  int64_t column_block_size() const { return column_size_; }
  Range rows(const Task& t) const {
    return {t.row_block * row_size_, std::min(n_, (t.row_block + 1) * row_size_)};
  }
  Range columns(const Task& t) const {
    return {t.column_block * column_size_, std::min(m_, (t.column_block + 1) * column_size_)};
  }

  static constexpr int64_t tile =
      256;  // rows and columns of the largest tile; larger blocks are walked tile by tile

 private:
  // Depends on the number of rows alone. About 64 blocks keep many threads busy; small ones keep a small
  // batch parallel.
  static int64_t block_size(int64_t n) {
    if (n <= 64) return 64;
    if (n <= 128) return 32;
    if (n <= 640) return 64;
    if (n <= 4096) return 128;
    return std::min<int64_t>(2048, round_up(n / 64, tile));
  }
  static int blocks(int64_t n, int64_t size) { return int(round_up(n, size) / size); }

  // Waits for a turn, which never comes once another task has failed.
  static void await(const std::atomic<int32_t>& served, int32_t turn, const std::atomic<bool>& failed) {
    for (int spins = 0; served.load(std::memory_order_acquire) < turn; spins++) {
      if (failed) throw std::bad_alloc();
      if (spins > 1000) std::this_thread::yield();
    }
  }

  int64_t n_, m_, row_size_, column_size_;
  bool symmetric_;
  int turns_ = 0;
  std::vector<Task> tasks_;
};

}  // namespace DML_ISA
