#include "memory.h"

#include <algorithm>

namespace ptx {

namespace {

constexpr u32 kEarlier = 1u << 31;  // among readers: a program before this one

// What fresh memory is full of; see ../launch.py.
constexpr u32 kUndefined = 0x7FEDBEEF;
constexpr u16 kUndefinedHalf = 0x7FED;

}  // namespace

Area::Area(u64 base, u64 size, u8* data, bool shared, int number)
    : base_(base),
      size_(size),
      data_(data),
      shared_(shared),
      number_(number),
      pages_((base + size) / kPage - base / kPage + 1) {}

Area::Page Area::new_page(u64 at) const {
  Page page(new Byte[kPage]);
  u64 end = std::min(at + kPage, base_ + size_);
  for (u64 k = std::max(at, base_); number_ && k < end; k += number_) {
    u32 number = 0;
    std::memcpy(&number, data_ + (k - base_), number_);
    bool undefined = number == (number_ == 4 ? kUndefined : kUndefinedHalf);
    for (int byte = 0; byte < number_; ++byte) page[k - at + byte].undefined = undefined;
  }
  return page;
}

void Area::check_programs(const Byte& byte, const Access& by, const char* does) const {
  if (!shared_ && byte.written && byte.written < by.program && !(byte.atomic && by.atomic)) {
    throw Fault{"race: " + std::string(does) + " what another program writes", byte.writer_at};
  }
}

void Area::check_write(const Byte& byte, const Access& by) const {
  u32 others = ~kEarlier & ~(1u << by.warp);
  if (byte.arriving) throw Fault{"writes what cp.async has under way", byte.writer_at};
  if (byte.leaving) throw Fault{"writes what a wgmma under way reads", byte.reader_at};
  if (byte.written == by.epoch && (byte.writers & others) && !(byte.atomic && by.atomic)) {
    throw Fault{"race: writes what another warp writes with no barrier between", byte.writer_at};
  }
  check_programs(byte, by, "writes");
  if (shared_ && byte.read == by.epoch && (byte.readers & others)) {
    throw Fault{"race: writes what another warp reads with no barrier between", byte.reader_at};
  }
  if (!shared_ && byte.read && (byte.read < by.program || (byte.readers & kEarlier))) {
    throw Fault{"race: writes what another program reads", byte.reader_at};
  }
}

bool Area::read(u64 at, u64 size, const Access& by) {
  bool defined = true;
  Byte* first = bytes(at);
  for (Byte* byte = first; byte < first + size; ++byte) {
    if (byte->arriving) throw Fault{"reads what cp.async has under way", byte->writer_at};
    bool is_race = byte->written == by.epoch && !(byte->writers >> by.warp & 1);
    if (is_race && shared_) {
      throw Fault{"race: reads what another warp writes with no barrier between", byte->writer_at};
    }
    check_programs(*byte, by, "reads");
    if (byte->read != by.epoch) {
      bool earlier = byte->read && (byte->read < by.program || (byte->readers & kEarlier));
      byte->readers = earlier ? kEarlier : 0;
      byte->read = by.epoch;
    }
    byte->readers |= 1u << by.warp;
    byte->reader_at = by.instruction;
    defined &= !is_race && !byte->undefined && !(shared_ && byte->written < by.program);
  }
  return defined;
}

void Area::write(u64 at, u64 size, const void* value, bool defined, const Access& by, u32 fences) {
  for (u64 k = 0; k < size; ++k) {
    Byte& byte = *bytes(at + k);
    u8* now = data(at + k);
    u8 then = value ? static_cast<const u8*>(value)[k] : *now;
    bool same = *now == then && byte.undefined == !defined;
    bool again = byte.written == by.epoch && same && !byte.arriving && !byte.leaving && !by.atomic;
    if (!again) {
      check_write(byte, by);
      byte.writers = 0;
    }
    *now = then;
    byte.written = by.epoch;
    byte.writers |= 1u << by.warp;
    byte.writer = static_cast<u8>(by.warp);
    byte.writer_at = by.instruction;
    byte.fences = fences;
    byte.undefined = !defined;
    byte.atomic = by.atomic;
  }
}

void Area::expect(u64 at, u64 size, const Access& by) {
  write(at, size, nullptr, false, by, kNeedsNoFence);
  for (u64 k = 0; k < size; ++k) bytes(at)[k].arriving = true;
}

void Area::arrive(u64 at, u64 size) {
  for (u64 k = 0; k < size; ++k) bytes(at)[k].arriving = false;
}

void Area::hold(u64 at, u64 size, const Access& by, const Fences& fences) {
  if (!read(at, size, by)) throw Fault{"multiplies what is not defined"};
  Byte* first = bytes(at);
  for (Byte* byte = first; byte < first + size; ++byte) {
    if (byte->fences == fences.counts[byte->writer] && byte->written >= fences.epoch) {
      throw Fault{"reads by wgmma what no fence.proxy.async followed", byte->writer_at};
    }
    ++byte->leaving;
  }
}

void Area::leave(u64 at, u64 size) {
  for (u64 k = 0; k < size; ++k) --bytes(at)[k].leaving;
}

}  // namespace ptx
