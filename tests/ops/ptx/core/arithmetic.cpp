// Sums, products, comparisons and approximate functions.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace ptx {

namespace {

template <class T>
void add_integers(Table& t, const std::string& type) {
  t["add." + type] = each([](T a, T b) -> T { return a + b; });
  t["sub." + type] = each([](T a, T b) -> T { return a - b; });
  t["mul.lo." + type] = each([](T a, T b) -> T { return a * b; });
  t["min." + type] = each([](T a, T b) -> T { return std::min(a, b); });
  t["max." + type] = each([](T a, T b) -> T { return std::max(a, b); });
}

template <class T>
void add_more_integers(Table& t, const std::string& type) {
  add_integers<T>(t, type);
  t["mad.lo." + type] = each([](T a, T b, T c) -> T { return a * b + c; });
  t["min.relu." + type] = each([](T a, T b) -> T { return std::max<T>(std::min(a, b), 0); });
  t["max.relu." + type] = each([](T a, T b) -> T { return std::max<T>(std::max(a, b), 0); });
  t["neg." + type] = each([](T a) -> T { return -a; });
  t["abs." + type] = each([](T a) -> T { return a < T(0) ? -a : a; });
  // by 0 it is anything, and so is the least number by -1
  t["div." + type] = each([](T a, T b) -> T {
    return b == 0 ? ~T(0) : b == T(-1) && T(-1) < T(0) ? -a : a / b;
  });
  t["rem." + type] = each([](T a, T b) -> T { return b == 0 ? a : b == T(-1) && T(-1) < T(0) ? 0 : a % b; });
}

template <class T, class Wide>
void add_wide(Table& t, const std::string& type) {
  t["mul.wide." + type] = each([](T a, T b) { return static_cast<Wide>(Wide(a) * Wide(b)); });
  t["mad.wide." + type] = each([](T a, T b, Wide c) { return static_cast<Wide>(Wide(a) * Wide(b) + c); });
  t["mul.hi." + type] = each([](T a, T b) { return static_cast<T>((Wide(a) * Wide(b)) >> (8 * sizeof(T))); });
}

template <class T>
void add_comparisons(Table& t, const std::string& type) {
  t["setp.eq." + type] = each([](T a, T b) { return a == b; });
  t["setp.ne." + type] = each([](T a, T b) { return a < b || a > b; });
  t["setp.lt." + type] = each([](T a, T b) { return a < b; });
  t["setp.le." + type] = each([](T a, T b) { return a <= b; });
  t["setp.gt." + type] = each([](T a, T b) { return a > b; });
  t["setp.ge." + type] = each([](T a, T b) { return a >= b; });
}

// The greater of two, of 0 and -0 the former; a number rather than NaN.
f32 greater(f32 a, f32 b) {
  if (a != a) return b;
  if (b != b || a > b) return a;
  return a == b && std::signbit(b) ? a : b;
}

f32 less(f32 a, f32 b) {
  return -greater(-a, -b);
}

void add_floats(Table& t) {
  for (std::string rounding : {"", "rn."}) {
    t["add." + rounding + "f32"] = each([](f32 a, f32 b) { return a + b; });
    t["sub." + rounding + "f32"] = each([](f32 a, f32 b) { return a - b; });
    t["mul." + rounding + "f32"] = each([](f32 a, f32 b) { return a * b; });
  }
  t["fma.rn.f32"] = each([](f32 a, f32 b, f32 c) { return std::fma(a, b, c); });
  t["fma.rn.f64"] = each([](f64 a, f64 b, f64 c) { return std::fma(a, b, c); });
  t["div.rn.f32"] = each([](f32 a, f32 b) { return a / b; });
  t["sqrt.rn.f32"] = each([](f32 a) { return std::sqrt(a); });
  t["rcp.rn.f32"] = each([](f32 a) { return 1 / a; });
  t["neg.f32"] = each([](f32 a) { return -a; });
  t["abs.f32"] = each([](f32 a) { return std::fabs(a); });
  t["copysign.f32"] = each([](f32 a, f32 b) { return std::copysign(b, a); });
  t["max.f32"] = each([](f32 a, f32 b) { return greater(a, b); });
  t["min.f32"] = each([](f32 a, f32 b) { return less(a, b); });
  t["max.NaN.f32"] = each([](f32 a, f32 b) { return a != a || b != b ? a + b : greater(a, b); });
  t["min.NaN.f32"] = each([](f32 a, f32 b) { return a != a || b != b ? a + b : less(a, b); });
  add_comparisons<f32>(t, "f32");
  // these are also true where one of the two is NaN
  t["setp.equ.f32"] = each([](f32 a, f32 b) { return !(a < b || a > b); });
  t["setp.neu.f32"] = each([](f32 a, f32 b) { return !(a == b); });
  t["setp.ltu.f32"] = each([](f32 a, f32 b) { return !(a >= b); });
  t["setp.leu.f32"] = each([](f32 a, f32 b) { return !(a > b); });
  t["setp.gtu.f32"] = each([](f32 a, f32 b) { return !(a <= b); });
  t["setp.geu.f32"] = each([](f32 a, f32 b) { return !(a < b); });
  t["setp.num.f32"] = each([](f32 a, f32 b) { return a == a && b == b; });
  t["setp.nan.f32"] = each([](f32 a, f32 b) { return a != a || b != b; });
}

// What is subnormal is taken for 0, and given as 0.
void add_flushed(Table& t) {
  t["add.ftz.f32"] = t["add.rn.ftz.f32"] =
      each([](f32 a, f32 b) { return flushed(flushed(a) + flushed(b)); });
  t["sub.ftz.f32"] = t["sub.rn.ftz.f32"] =
      each([](f32 a, f32 b) { return flushed(flushed(a) - flushed(b)); });
  t["mul.ftz.f32"] = t["mul.rn.ftz.f32"] =
      each([](f32 a, f32 b) { return flushed(flushed(a) * flushed(b)); });
  t["fma.rn.ftz.f32"] =
      each([](f32 a, f32 b, f32 c) { return flushed(std::fma(flushed(a), flushed(b), flushed(c))); });
}

// Rounded to the nearest, where a GPU may err by one or two units in the last place.
void add_approximations(Table& t) {
  t["div.full.f32"] = t["div.approx.f32"] = each([](f32 a, f32 b) { return a / b; });
  t["ex2.approx.f32"] = each([](f32 a) { return std::exp2(a); });
  t["lg2.approx.f32"] = each([](f32 a) { return std::log2(a); });
  t["sqrt.approx.f32"] = each([](f32 a) { return std::sqrt(a); });
  t["rsqrt.approx.f32"] = each([](f32 a) { return static_cast<f32>(1 / std::sqrt(static_cast<f64>(a))); });
  t["rcp.approx.f32"] = each([](f32 a) { return 1 / a; });
  t["tanh.approx.f32"] = each([](f32 a) { return std::tanh(a); });
  t["ex2.approx.ftz.f32"] = each([](f32 a) { return flushed(std::exp2(flushed(a))); });
  t["lg2.approx.ftz.f32"] = each([](f32 a) { return std::log2(flushed(a)); });
  t["sqrt.approx.ftz.f32"] = each([](f32 a) { return std::sqrt(flushed(a)); });
  t["rsqrt.approx.ftz.f32"] =
      each([](f32 a) { return static_cast<f32>(1 / std::sqrt(static_cast<f64>(flushed(a)))); });
  t["rcp.approx.ftz.f32"] = each([](f32 a) { return flushed(1 / flushed(a)); });
}

// f of the lower halves of some words and of their upper halves.
template <class T, class F, class... Words>
u32 by_halves(F f, Words... words) {
  u32 low = bits<u16>(f(bits<T>(static_cast<u16>(words))...));
  u32 high = bits<u16>(f(bits<T>(static_cast<u16>(words >> 16))...));
  return high << 16 | low;
}

// An operation of one or more numbers of 16 bits, and of as many pairs of them.
template <class T, class F>
void add_paired(Table& t, const std::string& name, const std::string& type, F f) {
  t[name + type] = each(f);
  if constexpr (std::is_invocable_v<F, T, T, T>) {
    t[name + type + "x2"] = each([](u32 a, u32 b, u32 c) { return by_halves<T>(F{}, a, b, c); });
  } else if constexpr (std::is_invocable_v<F, T, T>) {
    t[name + type + "x2"] = each([](u32 a, u32 b) { return by_halves<T>(F{}, a, b); });
  } else {
    t[name + type + "x2"] = each([](u32 a) { return by_halves<T>(F{}, a); });
  }
}

void add_halves(Table& t) {
  t["setp.num.f16"] = each([](f16 a, f16 b) { return a == a && b == b; });
  t["setp.nan.f16"] = each([](f16 a, f16 b) { return a != a || b != b; });
  add_paired<f16>(t, "max.", "f16", [](f16 a, f16 b) { return static_cast<f16>(greater(a, b)); });
  add_paired<f16>(t, "min.", "f16", [](f16 a, f16 b) { return static_cast<f16>(less(a, b)); });
  add_paired<f16>(t, "abs.", "f16", [](f16 a) { return bits<f16>(static_cast<u16>(bits<u16>(a) & 0x7FFF)); });
  add_paired<f16>(t, "neg.", "f16", [](f16 a) { return bits<f16>(static_cast<u16>(bits<u16>(a) ^ 0x8000)); });
  add_paired<bf16>(t, "add.", "bf16", [](bf16 a, bf16 b) { return bf16::of(f32(a) + f32(b)); });
  add_paired<bf16>(t, "sub.", "bf16", [](bf16 a, bf16 b) { return bf16::of(f32(a) - f32(b)); });
  add_paired<bf16>(t, "mul.", "bf16", [](bf16 a, bf16 b) { return bf16::of(f32(a) * f32(b)); });
  add_paired<bf16>(t, "max.", "bf16", [](bf16 a, bf16 b) { return bf16::of(greater(a, b)); });
  add_paired<bf16>(t, "min.", "bf16", [](bf16 a, bf16 b) { return bf16::of(less(a, b)); });
  add_paired<bf16>(t, "abs.", "bf16", [](bf16 a) { return bf16{static_cast<u16>(a.pattern & 0x7FFF)}; });
  add_paired<bf16>(t, "neg.", "bf16", [](bf16 a) { return bf16{static_cast<u16>(a.pattern ^ 0x8000)}; });
  add_paired<bf16>(t, "fma.rn.", "bf16", [](bf16 a, bf16 b, bf16 c) {
    return bf16::of(static_cast<f32>(f64(a) * f64(b) + f64(c)));
  });
}

}  // namespace

void add_arithmetic(Table& t) {
  add_integers<u16>(t, "u16");
  add_integers<s16>(t, "s16");
  add_more_integers<u32>(t, "u32");
  add_more_integers<s32>(t, "s32");
  add_more_integers<u64>(t, "u64");
  add_more_integers<s64>(t, "s64");
  add_wide<u16, u32>(t, "u16");
  add_wide<s16, s32>(t, "s16");
  add_wide<u32, u64>(t, "u32");
  add_wide<s32, s64>(t, "s32");
  add_comparisons<u16>(t, "u16");
  add_comparisons<s16>(t, "s16");
  add_comparisons<u16>(t, "b16");
  add_comparisons<u32>(t, "u32");
  add_comparisons<s32>(t, "s32");
  add_comparisons<u32>(t, "b32");
  add_comparisons<u64>(t, "u64");
  add_comparisons<s64>(t, "s64");
  add_comparisons<u64>(t, "b64");
  add_floats(t);
  add_flushed(t);
  add_approximations(t);
  add_halves(t);
  add_paired<s16>(t, "add.", "s16", [](s16 a, s16 b) -> s16 { return a + b; });
}

}  // namespace ptx
