// Logic, shifts, fields of bits, moves and selections.
#include <bit>
#include <type_traits>

#include "machine.h"

namespace ptx {

namespace {

template <class T>
void add_logic(Table& t, const std::string& type) {
  t["and." + type] = each([](T a, T b) -> T { return a & b; });
  t["or." + type] = each([](T a, T b) -> T { return a | b; });
  t["xor." + type] = each([](T a, T b) -> T { return a ^ b; });
  t["not." + type] = each([](T a) -> T { return ~a; });
}

template <class T>
void add_shifts(Table& t, const std::string& width) {
  using Signed = std::make_signed_t<T>;
  constexpr u32 kBits = 8 * sizeof(T);
  t["shl.b" + width] = each([](T a, u32 b) -> T { return b < kBits ? a << b : 0; });
  t["shr.u" + width] = t["shr.b" + width] = each([](T a, u32 b) -> T { return b < kBits ? a >> b : 0; });
  t["shr.s" + width] = each([](Signed a, u32 b) -> Signed { return a >> (b < kBits ? b : kBits - 1); });
}

// The b lowest bits.
template <class T>
T low_bits(u32 b) {
  return b < 8 * sizeof(T) ? (T(1) << b) - 1 : ~T(0);
}

template <class T>
void add_fields(Table& t, const std::string& width) {
  using Signed = std::make_signed_t<T>;
  constexpr u32 kBits = 8 * sizeof(T);
  t["bfe.u" + width] = each([](T a, u32 at, u32 length) -> T {
    at &= 255;
    return at < kBits ? (a >> at) & low_bits<T>(length & 255) : 0;
  });
  t["bfe.s" + width] = each([](Signed a, u32 at, u32 length) -> Signed {
    at &= 255, length &= 255;
    if (length == 0) return 0;
    Signed from = a >> (at < kBits ? at : kBits - 1);
    u32 above = length < kBits ? kBits - length : 0;
    return static_cast<Signed>(static_cast<T>(from) << above) >> above;
  });
  t["bfi.b" + width] = each([](T a, T b, u32 at, u32 length) -> T {
    at &= 255;
    if (at >= kBits) return b;
    T mask = low_bits<T>(length & 255) << at;
    return (b & ~mask) | ((a << at) & mask);
  });
  t["popc.b" + width] = each([](T a) -> u32 { return std::popcount(a); });
  t["clz.b" + width] = each([](T a) -> u32 { return std::countl_zero(a); });
}

// Four bytes of a and b, each chosen by four bits of c, the highest of which spreads its sign.
u32 permuted(u32 a, u32 b, u32 c) {
  u64 both = a | static_cast<u64>(b) << 32;
  u32 found = 0;
  for (int k = 0; k < 4; ++k) {
    u32 choice = c >> (4 * k);
    u8 byte = both >> (8 * (choice & 7));
    if (choice & 8) byte = byte & 0x80 ? 0xFF : 0;
    found |= static_cast<u32>(byte) << (8 * k);
  }
  return found;
}

// Bit (a, b, c) of a table by the bits of a, b and c.
u32 looked_up(u32 a, u32 b, u32 c, u32 table) {
  u32 found = 0;
  for (int k = 0; k < 8; ++k) {
    if (table >> k & 1) found |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  }
  return found;
}

// A register to another, several to one of which each takes a part, or the reverse.
template <class T>
void move(Warp& warp, const Instruction& i) {
  auto to = i.group(0), from = i.group(1);
  if (to.size() == 1 && from.size() == 1) {
    u32 changed = warp.changed[from[0]];  // to a wgmma.fence a copy is as old as what it copies
    warp.write(to[0], warp.lanes<T>(from[0]), warp.unknown[from[0]]);
    warp.changed[to[0]] = changed;
    return;
  }
  int parts = static_cast<int>(std::max(to.size(), from.size())), width = sizeof(T) / parts;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    if (to.size() == 1) {
      u64 whole = 0;
      bool defined = true;
      for (int k = 0; k < parts; ++k) {
        u64 part = static_cast<u64>(warp.get(from[k], lane)) << (64 - 8 * width) >> (64 - 8 * width);
        whole |= part << (8 * width * k);
        defined &= !(warp.unknown[from[k]] >> lane & 1);
      }
      warp.set(to[0], lane, whole, defined);
    } else {
      u64 whole = warp.get(from[0], lane);
      bool defined = !(warp.unknown[from[0]] >> lane & 1);
      for (int k = 0; k < parts; ++k) warp.set(to[k], lane, whole >> (8 * width * k), defined);
    }
  }
}

// Operand 1 or 2 by a predicate, of which the one that is not chosen need not be defined.
template <class T>
void select(Warp& warp, const Instruction& i) {
  const T *a = warp.lanes<T>(i.operand(1)), *b = warp.lanes<T>(i.operand(2));
  const bool* chosen = warp.lanes<bool>(i.operand(3));
  T found[kLanes];
  u32 first = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    found[lane] = chosen[lane] ? a[lane] : b[lane];
    first |= static_cast<u32>(chosen[lane]) << lane;
  }
  u32 unknown = (warp.unknown[i.operand(1)] & first) | (warp.unknown[i.operand(2)] & ~first);
  warp.write(i.operand(0), found, unknown | warp.unknown[i.operand(3)]);
}

// Of predicates: defined as well where one operand decides, which is true of `or`, false of `and`.
template <bool decides>
void combine(Warp& warp, const Instruction& i) {
  const bool *a = warp.lanes<bool>(i.operand(1)), *b = warp.lanes<bool>(i.operand(2));
  u32 unknown_a = warp.unknown[i.operand(1)], unknown_b = warp.unknown[i.operand(2)];
  bool found[kLanes];
  u32 decided = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    found[lane] = decides ? a[lane] | b[lane] : a[lane] & b[lane];
    bool by_a = a[lane] == decides && !(unknown_a >> lane & 1);
    bool by_b = b[lane] == decides && !(unknown_b >> lane & 1);
    if (by_a || by_b) found[lane] = decides, decided |= 1u << lane;
  }
  warp.write(i.operand(0), found, (unknown_a | unknown_b) & ~decided);
}

template <class T>
void add_moves(Table& t, const std::string& width) {
  for (std::string kind : {"b", "u", "s", "f"}) {
    t["mov." + kind + width] = move<T>;
    t["selp." + kind + width] = select<T>;
  }
}

}  // namespace

void add_bits(Table& t) {
  add_logic<u16>(t, "b16");
  add_logic<u32>(t, "b32");
  add_logic<u64>(t, "b64");
  t["and.pred"] = combine<false>;
  t["or.pred"] = combine<true>;
  t["xor.pred"] = each([](bool a, bool b) { return a != b; });
  t["not.pred"] = each([](bool a) { return !a; });
  t["mov.pred"] = each([](bool a) { return a; });
  add_shifts<u16>(t, "16");
  add_shifts<u32>(t, "32");
  add_shifts<u64>(t, "64");
  add_fields<u32>(t, "32");
  add_fields<u64>(t, "64");
  add_moves<u16>(t, "16");
  add_moves<u32>(t, "32");
  add_moves<u64>(t, "64");
  t["prmt.b32"] = each([](u32 a, u32 b, u32 c) { return permuted(a, b, c); });
  t["lop3.b32"] = each([](u32 a, u32 b, u32 c, u32 table) { return looked_up(a, b, c, table); });
  t["shf.l.wrap.b32"] = each([](u32 low, u32 high, u32 by) -> u32 {
    return ((static_cast<u64>(high) << 32 | low) << (by & 31)) >> 32;
  });
  t["shf.r.wrap.b32"] = each(
      [](u32 low, u32 high, u32 by) -> u32 { return (static_cast<u64>(high) << 32 | low) >> (by & 31); });
}

}  // namespace ptx
