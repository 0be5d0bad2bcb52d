// Memory of the kernels: buffers for vectors, and the blocks that are kept from one call to the next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "simd.h"

namespace DML_ISA {

// Fresh pages cost the system more time than a small batch costs the kernels, so that the blocks of a call
// wait here for the next one.
class Pool {
 public:
  struct Block {
    void* data;
    int64_t bytes;
  };

  // At least `bytes`, of any content.
  Block take(int64_t bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto best = kept_.end();
      for (auto block = kept_.begin(); block != kept_.end(); ++block)
        if (block->bytes >= bytes && block->bytes <= 2 * bytes + page &&
            (best == kept_.end() || block->bytes < best->bytes))
          best = block;
      if (best != kept_.end()) {
        const Block found = *best;
        *best = kept_.back();
        kept_.pop_back();
        kept_bytes_ -= found.bytes;
        return found;
      }
    }
    return {::operator new(bytes, alignment), bytes};
  }

  void give_back(Block block) noexcept {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (kept_.size() < kept_.capacity() && kept_bytes_ + block.bytes <= most_bytes) {
        kept_bytes_ += block.bytes;
        return kept_.push_back(block);
      }
    }
    ::operator delete(block.data, alignment);
  }

  // Lives until the process ends: threads of other libraries may still compute while it does.
  static Pool& shared() {
    static Pool& pool = *new Pool();
    return pool;
  }

 private:
  Pool() { kept_.reserve(64); }

  static constexpr std::align_val_t alignment{64};
  static constexpr int64_t page = 4096;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr int64_t most_bytes = 0;  // a block that is used after its end must be found
#else
  static constexpr int64_t most_bytes = 64 << 20;
#endif
  std::mutex mutex_;
  std::vector<Block> kept_;
  int64_t kept_bytes_ = 0;
};

// Memory for vectors, without the cost of zeroing it. Filled with NaN when poisoned, so that a test sees a
// read of what was never written.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size) {
    const Pool::Block block = Pool::shared().take(size * int64_t(sizeof(T)));
    data_ = std::unique_ptr<T, Return>(static_cast<T*>(block.data), Return{block.bytes});
    if (poison_buffers.load(std::memory_order_relaxed)) std::memset(block.data, 0xff, block.bytes);
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return size_; }
  explicit operator bool() const { return size_ > 0; }
  void fill(T value) { std::fill(data(), data() + size_, value); }

 private:
  struct Return {
    int64_t bytes = 0;
    void operator()(T* p) const { Pool::shared().give_back({p, bytes}); }
  };
  std::unique_ptr<T, Return> data_;
  int64_t size_ = 0;
};

}  // namespace DML_ISA
