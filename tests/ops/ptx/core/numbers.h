// The number types of PTX.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
using f16 = _Float16;

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

struct bf16 {
  u16 pattern;

  operator f32() const { return bits<f32>(static_cast<u32>(pattern) << 16); }

  // Rounds to nearest even.
  static bf16 of(f32 x) {
    u32 whole = bits<u32>(x);
    if (x != x) return {0x7FFF};
    return {static_cast<u16>((whole + 0x7FFF + ((whole >> 16) & 1)) >> 16)};
  }
};

// What is subnormal, taken for 0.
inline f32 flushed(f32 x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}

// The 19 bits of a float that a product of tf32 takes.
inline f32 tf32(f32 x) {
  return bits<f32>(bits<u32>(x) & 0xFFFFE000);
}

}  // namespace ptx
