// Programs of threads in warps of 32 lanes that carry out each instruction together.
#pragma once

#include <deque>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory.h"

namespace ptx {

constexpr int kLanes = 32;
constexpr u32 kAll = 0xFFFFFFFF;
constexpr u32 kSharedBase = 1024;  // shared memory is seen from here on

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&);
using Table = std::unordered_map<std::string, Handler>;  // by mnemonic

struct Instruction {
  Handler run;
  int guard;     // register of a predicate, or -1
  bool negated;  // the guard
  bool wgmma;    // takes the registers of others of its kind
  std::vector<int> items, starts;
  std::vector<int> registers, written;  // of all operands, and of the first unless it is an address

  // Operand k: a vector of registers, or of an address its register and offset; a label.
  std::span<const int> group(int k) const {
    return {items.data() + starts[k], static_cast<size_t>(starts[k + 1] - starts[k])};
  }
  int operand(int k) const { return items[starts[k]]; }
  int groups() const { return static_cast<int>(starts.size()) - 1; }
};

// A register that holds the same in all threads, or a special one: what 'kind' numbers in order are
// tid, ntid, ctaid and nctaid of x, y and z each, then laneid.
struct Constant {
  int reg;
  u64 value;
};
struct Special {
  int reg, kind;
};

struct Kernel {
  std::vector<Instruction> instructions;
  std::vector<Constant> constants;
  std::vector<Special> specials;
  std::vector<u8> widths;  // bytes by register, 0 of those that are taken at any
};

// Of all lanes, once for each width at which an instruction may take it.
struct alignas(64) Register {
  u64 b64[kLanes];
  u32 b32[kLanes];
  u16 b16[kLanes];
  u8 b8[kLanes];  // also of predicates
};

// A cp.async under way.
struct Copy {
  u64 to, from;
  int size, given;  // bytes that it writes, of which those after the given ones are 0
  int instruction;
};

// A wgmma under way; see products.cpp.
struct Multiplication {
  const Instruction* instruction;
  int at;
  u64 a, b;   // descriptors
  bool adds;  // to D
  void (*finish)(Warp&, const Multiplication&);
};

template <class Operation>
using Groups = std::deque<std::vector<Operation>>;  // oldest first, the last is not committed

template <class Operation>
bool under_way(const Groups<Operation>& groups) {
  return groups.size() > 1 || !groups.back().empty();
}

struct Block;

struct Warp {
  Warp(Block& block, int index);

  void begin();             // at the start of a program
  void run();               // until a barrier or the end
  void branch(int target);  // of the lanes that are active

  template <class T>
  T* lanes(int reg) {
    if (widths[reg] != sizeof(T) && widths[reg] != 0) throw Fault{"takes a register at another width"};
    Register& r = registers[reg];
    if constexpr (sizeof(T) == 8) return reinterpret_cast<T*>(r.b64);
    if constexpr (sizeof(T) == 4) return reinterpret_cast<T*>(r.b32);
    if constexpr (sizeof(T) == 2) return reinterpret_cast<T*>(r.b16);
    return reinterpret_cast<T*>(r.b8);
  }

  // Of the active lanes; not inlined, as all instructions end with it.
  template <class T>
  [[gnu::noinline]] void write(int reg, const T* values, u32 unknown_lanes) {
    T* to = lanes<T>(reg);
    if (active == kAll) {
      std::memcpy(to, values, sizeof(T) * kLanes);
    } else {
      for (int lane = 0; lane < kLanes; ++lane) to[lane] = is_active(lane) ? values[lane] : to[lane];
    }
    unknown[reg] = (unknown[reg] & ~active) | (unknown_lanes & active);
    changed[reg] = register_fences;
  }
  // Of one lane, at the width of the register.
  void set(int reg, int lane, s64 value, bool defined);
  s64 get(int reg, int lane);

  bool is_active(int lane) const { return active >> lane & 1; }
  bool is_defined(int reg) const { return !(unknown[reg] & active); }
  void need_defined(int reg, const char* use) const;
  void need_all_lanes(const char* name) const;
  Access access(int instruction) const;
  Access access() const { return access(pc); }

  Block& block;
  int index;
  const u8* widths;  // by register
  std::vector<Register> registers;
  std::vector<u32> unknown;       // by register: the lanes in which it is not defined
  std::vector<u8> awaited, lent;  // by register: how many wgmma under way write it, or read it
  std::vector<u32> changed;       // by register: register_fences at its last change
  int pc = 0;
  u32 here = kAll;                             // lanes that are at pc
  u32 active = kAll;                           // those of them that carry out the instruction
  std::vector<std::pair<int, u32>> elsewhere;  // other lanes, and where they are
  bool at_barrier = false, done = false;
  u32 fences = 0, fenced = 0;  // fence.proxy.async carried out, and the epoch of the last
  u32 register_fences = 0;     // wgmma.fence carried out, and 1
  Groups<Copy> copies;
  Groups<Multiplication> multiplications;

 private:
  u32 guarded(const Instruction& instruction);
  void rejoin();
  void check_busy(const Instruction& instruction) const;
};

struct Grid {
  int x, y, z;
};

// A program: its warps and its memory, used anew for each of a grid.
struct Block {
  Block(const Kernel& kernel, std::vector<Area>& tensors, Grid grid, int warps, u64 shared_size);

  void run(int x, int y, int z, bool reversed);
  Area& area(bool is_shared, u64 at, u64 size);  // aligned and within bounds, or a Fault
  Fences fences(const Warp& reader) const;

  const Kernel& kernel;
  std::vector<Area>& tensors;  // by address
  Grid grid;
  std::vector<u8> shared_data;
  Area shared;
  u32 epoch = 0, began = 0;
  std::vector<Warp> warps;
  Warp* running = nullptr;  // for reports

 private:
  void begin(Warp& warp, int x, int y, int z);
};

// The instructions, by what they do.
void add_arithmetic(Table& table);
void add_bits(Table& table);
void add_conversions(Table& table);
void add_transfers(Table& table);
void add_products(Table& table);
void add_control(Table& table);

// An instruction of each lane by itself: what it computes of operands 1, 2, ... goes to operand 0.
template <class F, class R, class... A, size_t... I>
void apply(Warp& warp, const Instruction& i, R (F::*)(A...) const, std::index_sequence<I...>) {
  R found[kLanes];
  auto compute = [&](const A*... from) {
    for (int lane = 0; lane < kLanes; ++lane) found[lane] = F{}(from[lane]...);
  };
  compute(warp.lanes<A>(i.operand(I + 1))...);
  warp.write(i.operand(0), found, (0u | ... | warp.unknown[i.operand(I + 1)]));
}

template <class F, class R, class... A>
Handler handler_of(R (F::*)(A...) const) {
  return [](Warp& warp, const Instruction& i) {
    apply(warp, i, &F::operator(), std::index_sequence_for<A...>{});
  };
}

template <class F>
Handler each(F) {
  return handler_of(&F::operator());
}

}  // namespace ptx
