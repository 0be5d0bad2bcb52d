// Between registers and memory: ld, st, atom, cp.async, ldmatrix and stmatrix.
#include "machine.h"

namespace ptx {

namespace {

enum Space { kGlobal, kShared };

// The address that operand k gives in a lane: a register and an offset.
template <Space space>
u64 address(Warp& warp, std::span<const int> operand, int lane) {
  s64 offset = operand[1];
  if constexpr (space == kGlobal) return warp.lanes<u64>(operand[0])[lane] + offset;
  return static_cast<u32>(warp.lanes<u32>(operand[0])[lane] + offset);
}

template <Space space, class T>
void load(Warp& warp, const Instruction& i) {
  auto to = i.group(0), from = i.group(1);
  warp.need_defined(from[0], "an address");
  u64 size = sizeof(T) * to.size();
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    u64 at = address<space>(warp, from, lane);
    Area& area = warp.block.area(space == kShared, at, size);
    bool defined = true;
    if (!area.read(at, size, warp.access())) {  // some part of it is not
      for (size_t k = 0; k < to.size(); ++k) {
        T value;
        std::memcpy(&value, area.data(at + k * sizeof(T)), sizeof(T));
        defined = area.read(at + k * sizeof(T), sizeof(T), warp.access());
        warp.set(to[k], lane, value, defined);
      }
      continue;
    }
    for (size_t k = 0; k < to.size(); ++k) {
      T value;
      std::memcpy(&value, area.data(at + k * sizeof(T)), sizeof(T));
      warp.set(to[k], lane, value, true);
    }
  }
}

template <Space space, class T>
void store(Warp& warp, const Instruction& i) {
  auto to = i.group(0), from = i.group(1);
  warp.need_defined(to[0], "an address");
  if (space == kGlobal) {
    for (int reg : from) warp.need_defined(reg, "what is stored");
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    u64 at = address<space>(warp, to, lane);
    Area& area = warp.block.area(space == kShared, at, sizeof(T) * from.size());
    for (size_t k = 0; k < from.size(); ++k) {
      T value = static_cast<T>(warp.get(from[k], lane));
      bool defined = !(warp.unknown[from[k]] >> lane & 1);
      area.write(at + k * sizeof(T), sizeof(T), &value, defined, warp.access(), warp.fences);
    }
  }
}

template <Space space>
void add_space(Table& t, const std::string& name) {
  for (std::string vector : {"", "v2.", "v4."}) {
    for (std::string kind : {"b", "u"}) {
      std::string load_of = "ld." + name + vector + kind, store_of = "st." + name + vector + kind;
      t[load_of + "8"] = load<space, u8>;
      t[load_of + "16"] = load<space, u16>;
      t[load_of + "32"] = load<space, u32>;
      t[load_of + "64"] = load<space, u64>;
      t[store_of + "8"] = store<space, u8>;
      t[store_of + "16"] = store<space, u16>;
      t[store_of + "32"] = store<space, u32>;
      t[store_of + "64"] = store<space, u64>;
    }
    t["ld." + name + vector + "f32"] = load<space, u32>;
    t["ld." + name + vector + "f64"] = load<space, u64>;
    t["st." + name + vector + "f32"] = store<space, u32>;
    t["st." + name + vector + "f64"] = store<space, u64>;
    t["ld." + name + vector + "s8"] = load<space, s8>;
    t["ld." + name + vector + "s16"] = load<space, s16>;
    t["ld." + name + vector + "s32"] = load<space, s32>;
    t["ld." + name + vector + "s64"] = load<space, s64>;
  }
}

// The old value goes to operand 0, and f of it and operand 2 to memory, lane by lane.
template <class T, class F>
Handler atomic(F) {
  return [](Warp& warp, const Instruction& i) {
    auto at_operand = i.group(1);
    warp.need_defined(at_operand[0], "an address");
    warp.need_defined(i.operand(2), "what is stored");
    Access by = warp.access();
    by.atomic = true;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!warp.is_active(lane)) continue;
      u64 at = address<kGlobal>(warp, at_operand, lane);
      Area& area = warp.block.area(false, at, sizeof(T));
      if (area.bytes(at)->undefined) throw Fault{"adds to what is not defined"};
      T old;
      std::memcpy(&old, area.data(at), sizeof(T));
      T value = F{}(old, warp.lanes<T>(i.operand(2))[lane]);
      area.write(at, sizeof(T), &value, true, by);
      warp.set(i.operand(0), lane, bits<std::conditional_t<sizeof(T) == 4, u32, u64>>(old), true);
    }
  };
}

// The copy is under way from here on, and arrives at cp.async.wait_group.
void copy_async(Warp& warp, const Instruction& i) {
  auto to = i.group(0), from = i.group(1);
  warp.need_defined(to[0], "an address");
  int size = warp.lanes<u32>(i.operand(2))[0];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp.is_active(lane)) continue;
    int given = size;
    if (i.groups() > 3) {
      warp.need_defined(i.operand(3), "the size of a copy");
      given = warp.lanes<u32>(i.operand(3))[lane];
    }
    if (given > 0) warp.need_defined(from[0], "an address");
    Copy copy{address<kShared>(warp, to, lane), address<kGlobal>(warp, from, lane), size, given, warp.pc};
    warp.block.area(true, copy.to, size).expect(copy.to, size, warp.access());
    if (given > 0) warp.block.area(false, copy.from, given);
    warp.copies.back().push_back(copy);
  }
}

void arrive(Warp& warp, const Copy& copy) {
  Access by = warp.access(copy.instruction);
  u8 value[16] = {};
  bool defined = true;
  if (copy.given > 0) {
    Area& source = warp.block.area(false, copy.from, copy.given);
    defined = source.read(copy.from, copy.given, by);
    std::memcpy(value, source.data(copy.from), copy.given);
  }
  warp.block.shared.arrive(copy.to, copy.size);
  warp.block.shared.write(copy.to, copy.size, value, defined, by, kNeedsNoFence);
}

void commit_copies(Warp& warp, const Instruction&) {
  warp.copies.emplace_back();
}

// Waits for all but the latest groups; the one that is not committed is none of them.
void await_copies(Warp& warp, size_t but) {
  while (warp.copies.size() > but + 1) {
    for (const Copy& copy : warp.copies.front()) arrive(warp, copy);
    warp.copies.pop_front();
  }
}

// The address of row `row` of 16 bytes of a matrix, which lane 8 * matrix + row gives.
u64 row_of(Warp& warp, std::span<const int> operand, int matrix, int row) {
  u64 at = address<kShared>(warp, operand, 8 * matrix + row);
  warp.block.area(true, at, 16);
  return at;
}

// A lane takes two numbers of row lane / 4 of each matrix, transposed of column lane / 4.
template <bool transposed>
u64 place_of(Warp& warp, std::span<const int> operand, int matrix, int lane, int half) {
  int row = lane / 4, column = lane % 4 * 2 + half;
  if (transposed) std::swap(row, column);
  return row_of(warp, operand, matrix, row) + 2 * column;
}

template <bool transposed>
void load_matrices(Warp& warp, const Instruction& i) {
  auto to = i.group(0), from = i.group(1);
  warp.need_all_lanes("ldmatrix");
  warp.need_defined(from[0], "an address");
  Area& shared = warp.block.shared;
  for (size_t matrix = 0; matrix < to.size(); ++matrix) {
    for (int lane = 0; lane < kLanes; ++lane) {
      u16 halves[2];
      bool defined = true;
      for (int half = 0; half < 2; ++half) {
        u64 at = place_of<transposed>(warp, from, matrix, lane, half);
        defined &= shared.read(at, 2, warp.access());
        std::memcpy(&halves[half], shared.data(at), 2);
      }
      warp.set(to[matrix], lane, static_cast<u32>(halves[1]) << 16 | halves[0], defined);
    }
  }
}

template <bool transposed>
void store_matrices(Warp& warp, const Instruction& i) {
  auto to = i.group(0), from = i.group(1);
  warp.need_all_lanes("stmatrix");
  warp.need_defined(to[0], "an address");
  Area& shared = warp.block.shared;
  for (size_t matrix = 0; matrix < from.size(); ++matrix) {
    for (int lane = 0; lane < kLanes; ++lane) {
      u32 both = warp.lanes<u32>(from[matrix])[lane];
      bool defined = !(warp.unknown[from[matrix]] >> lane & 1);
      for (int half = 0; half < 2; ++half) {
        u64 at = place_of<transposed>(warp, to, matrix, lane, half);
        u16 value = both >> (16 * half);
        shared.write(at, 2, &value, defined, warp.access(), warp.fences);
      }
    }
  }
}

}  // namespace

void add_transfers(Table& t) {
  add_space<kGlobal>(t, "global.");
  add_space<kShared>(t, "shared.");
  add_space<kShared>(t, "shared::cta.");  // as Triton 3.8 has it
  for (std::string order : {"", "acq_rel.", "relaxed."}) {
    t["atom.global.gpu." + order + "add.f32"] = atomic<f32>([](f32 a, f32 b) { return a + b; });
    t["atom.global.gpu." + order + "add.u32"] = atomic<u32>([](u32 a, u32 b) { return a + b; });
    t["atom.global.gpu." + order + "max.s32"] = atomic<s32>([](s32 a, s32 b) { return std::max(a, b); });
  }
  t["cp.async.ca.shared.global"] = t["cp.async.cg.shared.global"] = copy_async;
  t["cp.async.commit_group"] = commit_copies;
  t["cp.async.wait_group"] = [](Warp& warp, const Instruction& i) {
    await_copies(warp, warp.lanes<u32>(i.operand(0))[0]);
  };
  t["cp.async.wait_all"] = [](Warp& warp, const Instruction& i) {
    commit_copies(warp, i);
    await_copies(warp, 0);
  };
  for (std::string count : {"x1", "x2", "x4"}) {
    t["ldmatrix.sync.m8n8." + count + ".shared.b16"] = load_matrices<false>;
    t["ldmatrix.sync.m8n8." + count + ".trans.shared.b16"] = load_matrices<true>;
    t["stmatrix.sync.m8n8." + count + ".shared.b16"] = store_matrices<false>;
    t["stmatrix.sync.m8n8." + count + ".trans.shared.b16"] = store_matrices<true>;
  }
}

}  // namespace ptx
