// Conversions from one number type to another.
#include <algorithm>
#include <limits>

#include "machine.h"

namespace ptx {

namespace {

// Of an integer, which may lie in a wider register.
template <class From, class To>
void convert(Warp& warp, const Instruction& i) {
  To found[kLanes];
  int from = i.operand(1);
  for (int lane = 0; lane < kLanes; ++lane) {
    found[lane] = static_cast<To>(static_cast<From>(warp.get(from, lane)));
  }
  warp.write(i.operand(0), found, warp.unknown[from]);
}

template <class From>
void add_integers_from(Table& t, const std::string& from) {
  t["cvt.u16." + from] = t["cvt.s16." + from] = convert<From, u16>;
  t["cvt.u32." + from] = t["cvt.s32." + from] = convert<From, u32>;
  t["cvt.u64." + from] = t["cvt.s64." + from] = convert<From, u64>;
  t["cvt.rn.f32." + from] = convert<From, f32>;
  t["cvt.rn.f64." + from] = convert<From, f64>;
}

// The nearest number that the type has; NaN becomes 0.
template <class To>
To clamped(f32 x) {
  using Limits = std::numeric_limits<To>;
  constexpr f32 kBeyond = 2 * static_cast<f32>(Limits::max() / 2 + 1);
  if (x != x) return 0;
  if (x >= kBeyond) return Limits::max();
  return x <= static_cast<f32>(Limits::min()) ? Limits::min() : static_cast<To>(x);
}

template <class To>
void add_integers_to(Table& t, const std::string& to) {
  t["cvt.rzi." + to + ".f32"] = each([](f32 a) { return clamped<To>(std::trunc(a)); });
  t["cvt.rni." + to + ".f32"] = each([](f32 a) { return clamped<To>(std::nearbyint(a)); });
  t["cvt.rmi." + to + ".f32"] = each([](f32 a) { return clamped<To>(std::floor(a)); });
  t["cvt.rpi." + to + ".f32"] = each([](f32 a) { return clamped<To>(std::ceil(a)); });
}

f32 nearest_tf32(f32 x) {  // ties go away from zero
  return std::isfinite(x) ? tf32(bits<f32>(bits<u32>(x) + 0x1000)) : x;
}

u32 halves(u16 high, u16 low) {
  return static_cast<u32>(high) << 16 | low;
}

}  // namespace

void add_conversions(Table& t) {
  add_integers_from<u8>(t, "u8");
  add_integers_from<s8>(t, "s8");
  add_integers_from<u16>(t, "u16");
  add_integers_from<s16>(t, "s16");
  add_integers_from<u32>(t, "u32");
  add_integers_from<s32>(t, "s32");
  add_integers_from<u64>(t, "u64");
  add_integers_from<s64>(t, "s64");
  add_integers_to<u32>(t, "u32");
  add_integers_to<s32>(t, "s32");
  add_integers_to<u64>(t, "u64");
  add_integers_to<s64>(t, "s64");
  t["cvt.rzi.f32.f32"] = each([](f32 a) { return std::trunc(a); });
  t["cvt.rni.f32.f32"] = each([](f32 a) { return std::nearbyint(a); });
  t["cvt.rmi.f32.f32"] = each([](f32 a) { return std::floor(a); });
  t["cvt.rpi.f32.f32"] = each([](f32 a) { return std::ceil(a); });
  t["cvt.f64.f32"] = each([](f32 a) { return static_cast<f64>(a); });
  t["cvt.rn.f32.f64"] = each([](f64 a) { return static_cast<f32>(a); });
  t["cvt.f32.f16"] = each([](f16 a) { return static_cast<f32>(a); });
  t["cvt.rn.f16.f32"] = each([](f32 a) { return static_cast<f16>(a); });
  t["cvt.f32.bf16"] = each([](bf16 a) { return static_cast<f32>(a); });
  t["cvt.rn.bf16.f32"] = each([](f32 a) { return bf16::of(a); });
  t["cvt.rn.bf16x2.f32"] =
      each([](f32 high, f32 low) { return halves(bf16::of(high).pattern, bf16::of(low).pattern); });
  t["cvt.rn.f16x2.f32"] = each([](f32 high, f32 low) {
    return halves(bits<u16>(static_cast<f16>(high)), bits<u16>(static_cast<f16>(low)));
  });
  t["cvt.rna.tf32.f32"] = each([](f32 a) { return nearest_tf32(a); });
}

}  // namespace ptx
