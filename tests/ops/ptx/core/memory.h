// Memory as a program of threads sees it: what each byte holds, and who touched it when.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "numbers.h"

namespace ptx {

constexpr u32 kNeedsNoFence = 0xFFFFFFFF;  // for `fences` of a write that is no plain store

// What a kernel does wrong. `other`: the instruction that it clashes with, or -1.
struct Fault {
  std::string what;
  int other = -1;
};

// Where an access comes from. Barriers of a program, and programs, part epochs; the first is 1.
struct Access {
  int warp, instruction;
  u32 epoch;
  u32 program;  // the epoch in which the program began
  bool atomic = false;
};

// The fence.proxy.async that a read by a wgmma can rely on: as many as each warp has carried out, and
// the epoch of the last by the reader.
struct Fences {
  std::vector<u32> counts;
  u32 epoch;
};

struct Byte {
  u32 written = 0, read = 0;  // epochs of the last write and the last reads, 0: never
  u32 readers = 0;            // warps that read it in that epoch, and kEarlier
  int writer_at = -1, reader_at = -1;
  u32 writers = 0;        // warps that wrote the same in that epoch
  u32 fences = 0;         // fence.proxy.async that the last writer had carried out before
  u8 writer = 0;          // the last
  u8 leaving = 0;         // wgmma under way that may yet read it
  bool arriving = false;  // a cp.async under way may yet write it
  bool undefined = false;
  bool atomic = false;  // the last write
};

// A run of bytes with their state: the shared memory of a program, or a tensor. An access is of 16
// bytes at most, and aligned.
class Area {
 public:
  // `number`: bytes of a number, 2 or 4, where one of a certain pattern is not defined; else 0.
  Area(u64 base, u64 size, u8* data, bool shared, int number = 0);

  u64 base() const { return base_; }
  bool holds(u64 at, u64 size) const { return at >= base_ && at + size <= base_ + size_; }
  u8* data(u64 at) { return data_ + (at - base_); }
  Byte* bytes(u64 at) {
    Page& page = pages_[at / kPage - base_ / kPage];
    if (!page) page = new_page(at / kPage * kPage);
    return &page[at % kPage];
  }

  // A read of bytes that the area holds. Returns whether all are defined; those of a tensor are not
  // where another warp has written them with no barrier between.
  bool read(u64 at, u64 size, const Access& by);
  // Several warps may write the same. `value`: null where nothing of it is known yet.
  void write(u64 at, u64 size, const void* value, bool defined, const Access& by, u32 fences = 0);

  // A cp.async that will write from now until it arrives; a wgmma that will read until it leaves.
  void expect(u64 at, u64 size, const Access& by);
  void arrive(u64 at, u64 size);
  void hold(u64 at, u64 size, const Access& by, const Fences& fences);
  void leave(u64 at, u64 size);

 private:
  void check_write(const Byte& byte, const Access& by) const;
  void check_programs(const Byte& byte, const Access& by, const char* does) const;

  using Page = std::unique_ptr<Byte[]>;
  static constexpr u64 kPage = 1024;
  Page new_page(u64 at) const;

  u64 base_, size_;
  u8* data_;
  bool shared_;
  int number_;
  std::vector<Page> pages_;  // null where nobody was
};

}  // namespace ptx
