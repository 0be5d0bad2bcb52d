// Products of matrices: mma, which is done at once, and wgmma, which is under way until it is waited
// for.
//
// A fragment is the part of a matrix that a warp holds in registers, of E numbers each (two halves
// or one tf32). In the thread of lane 4 g + t register r holds, with e from 0 to E - 1:
//   of A (16 x 8 E)  row g + 8 (r % 2), column E (t + 4 (r / 2)) + e
//   of B (8 E x 8)   row E (t + 4 r) + e, column g
//   of D (16 x N)    row g + 8 (r / 2 % 2), column 8 (r / 4) + 2 t + r % 2
#include "machine.h"

namespace ptx {

namespace {

constexpr int kMostColumns = 256, kMostDepth = 16;

struct Half {
  static constexpr int kIn32 = 2;
  static f32 value(u32 word, int e) { return bits<f16>(static_cast<u16>(word >> (16 * e))); }
};

struct Brain {
  static constexpr int kIn32 = 2;
  static f32 value(u32 word, int e) { return bf16{static_cast<u16>(word >> (16 * e))}; }
};

struct Tensor32 {
  static constexpr int kIn32 = 1;
  static f32 value(u32 word, int) { return tf32(bits<f32>(word)); }
};

struct Matrices {
  f32 a[16][kMostDepth];
  f32 b[kMostDepth][kMostColumns];
  f32 d[16][kMostColumns];

  void multiply(int depth, int columns) {
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < depth; ++k) {
        for (int column = 0; column < columns; ++column) d[row][column] += a[row][k] * b[k][column];
      }
    }
  }
};

template <class Number>
void take_a(Warp& warp, std::span<const int> registers, f32 (&a)[16][kMostDepth]) {
  constexpr int E = Number::kIn32;
  for (int r = 0; r < 4; ++r) {
    warp.need_defined(registers[r], "what is multiplied");
    const u32* words = warp.lanes<u32>(registers[r]);
    for (int lane = 0; lane < kLanes; ++lane) {
      f32* row = a[lane / 4 + 8 * (r % 2)] + E * (lane % 4 + 4 * (r / 2));
      for (int e = 0; e < E; ++e) row[e] = Number::value(words[lane], e);
    }
  }
}

template <class Number>
void take_b(Warp& warp, std::span<const int> registers, f32 (&b)[kMostDepth][kMostColumns]) {
  constexpr int E = Number::kIn32;
  for (int r = 0; r < 2; ++r) {
    warp.need_defined(registers[r], "what is multiplied");
    const u32* words = warp.lanes<u32>(registers[r]);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int e = 0; e < E; ++e) b[E * (lane % 4 + 4 * r) + e][lane / 4] = Number::value(words[lane], e);
    }
  }
}

f32& of_d(Matrices& m, int r, int lane) {
  return m.d[lane / 4 + 8 * (r / 2 % 2)][8 * (r / 4) + 2 * (lane % 4) + r % 2];
}

void take_d(Warp& warp, std::span<const int> registers, Matrices& m) {
  for (size_t r = 0; r < registers.size(); ++r) {
    warp.need_defined(registers[r], "what is added to a product");
    for (int lane = 0; lane < kLanes; ++lane) of_d(m, r, lane) = warp.lanes<f32>(registers[r])[lane];
  }
}

void give_d(Warp& warp, std::span<const int> registers, Matrices& m) {
  for (size_t r = 0; r < registers.size(); ++r) {
    f32 found[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) found[lane] = of_d(m, r, lane);
    warp.write(registers[r], found, 0);
  }
}

template <class Number>
void multiply(Warp& warp, const Instruction& i) {
  warp.need_all_lanes("mma.sync");
  Matrices m;
  take_a<Number>(warp, i.group(1), m.a);
  take_b<Number>(warp, i.group(2), m.b);
  take_d(warp, i.group(3), m);
  m.multiply(8 * Number::kIn32, 8);
  give_d(warp, i.group(0), m);
}

// Where a matrix for wgmma lies in shared memory, in runs of 16 bytes. A line is a row or column of
// the matrix where its runs go along k, else one step of k.
struct Descriptor {
  u64 given;

  u32 field(int from) const { return static_cast<u32>(given >> from & 0x3FFF) << 4; }
  u32 start() const { return field(0); }
  u32 leading() const { return field(16); }
  u32 stride() const { return field(32); }
  u32 swizzle() const { return given >> 62; }  // 0: none, 1: over 128 bytes, 2: over 64, 3: over 32

  u64 place(int line, int run, bool along_k) const {
    if (given >> 49 & 7) throw Fault{"takes a matrix with a base offset"};
    u32 runs = swizzle() ? 16u >> swizzle() : 1;  // of a line that lie together
    u32 line_stride = stride(), run_stride = leading();
    if (runs == 1 && !along_k) std::swap(line_stride, run_stride);
    u32 at = start() + line / 8 * line_stride + line % 8 * 16 * runs;
    at += run / runs * run_stride + run % runs * 16;
    return at ^ ((at >> 7 & (runs - 1)) << 4);
  }
};

// wgmma.mma_async D, A, B, scale-d, scale-a, scale-b and, of halves, whether A, unless it is in
// registers, and B are stored across k. A warp computes its own 16 of the 64 rows.
template <class Number>
struct Wgmma {
  static constexpr int kDepth = 8 * Number::kIn32, kInRun = 4 * Number::kIn32;
  const Instruction& i;

  std::span<const int> d() const { return i.group(0); }
  std::span<const int> a() const { return i.group(1); }
  bool a_in_registers() const { return a().size() > 1; }
  int columns() const { return static_cast<int>(d().size()) * 2; }
  bool along_k(Warp& warp, int operand) const {
    return operand >= i.groups() || warp.lanes<u32>(i.operand(operand))[0] == 0;
  }

  // Calls f(address, index, k, along_k) for each run of `count` rows or columns of a matrix; it has
  // the numbers (index, k + e) or, across k, (index + e, k).
  template <class F>
  void each_run(u64 descriptor, int from, int count, bool along_k, F f) const {
    int lines = along_k ? count : kDepth, runs = (along_k ? kDepth : count) / kInRun;
    int first_line = along_k ? from : 0, first_run = along_k ? 0 : from / kInRun;
    for (int line = 0; line < lines; ++line) {
      for (int run = 0; run < runs; ++run) {
        u64 at = Descriptor{descriptor}.place(first_line + line, first_run + run, along_k);
        f(at, along_k ? line : run * kInRun, along_k ? run * kInRun : line, along_k);
      }
    }
  }
  template <class F>
  void each_run_of_a(Warp& warp, const Multiplication& m, F f) const {
    if (!a_in_registers()) each_run(m.a, 16 * (warp.index % 4), 16, along_k(warp, 6), f);
  }
  template <class F>
  void each_run_of_b(Warp& warp, const Multiplication& m, F f) const {
    each_run(m.b, 0, columns(), along_k(warp, a_in_registers() ? 6 : 7), f);
  }

  void start(Warp& warp) const;
  void finish(Warp& warp, const Multiplication& m) const;
};

void need_fence(const Warp& warp, int reg) {
  if (warp.changed[reg] == warp.register_fences)
    throw Fault{"takes a register with no wgmma.fence since its change"};
}

template <class Number>
void Wgmma<Number>::start(Warp& warp) const {
  warp.need_all_lanes("wgmma.mma_async");
  if (!a_in_registers()) warp.need_defined(a()[0], "a matrix descriptor");
  warp.need_defined(i.operand(2), "a matrix descriptor");
  warp.need_defined(i.operand(3), "whether D is added to");
  for (int scale : {i.operand(4), i.operand(5)}) {
    if (warp.lanes<s32>(scale)[0] != 1) throw Fault{"scales a matrix, which is not known here"};
  }
  Multiplication m{&i,
                   warp.pc,
                   a_in_registers() ? 0 : warp.lanes<u64>(a()[0])[0],
                   warp.lanes<u64>(i.operand(2))[0],
                   warp.lanes<bool>(i.operand(3))[0],
                   [](Warp& of, const Multiplication& m) { Wgmma{*m.instruction}.finish(of, m); }};
  Fences fences = warp.block.fences(warp);
  auto hold = [&](u64 at, int, int, bool) {
    warp.block.area(true, at, 16).hold(at, 16, warp.access(), fences);
  };
  each_run_of_a(warp, m, hold);
  each_run_of_b(warp, m, hold);
  if (a_in_registers()) {
    for (int reg : a()) {
      if (warp.awaited[reg]) throw Fault{"multiplies what a wgmma under way computes"};
      need_fence(warp, reg);
      ++warp.lent[reg];
    }
  }
  for (int reg : d()) {
    need_fence(warp, reg);
    ++warp.awaited[reg];
  }
  warp.multiplications.back().push_back(m);
}

template <class Number>
void Wgmma<Number>::finish(Warp& warp, const Multiplication& m) const {
  Area& shared = warp.block.shared;
  Matrices all;
  auto numbers = [&](u64 at, auto put) {
    shared.leave(at, 16);
    shared.read(at, 16, warp.access(m.at));
    u32 words[4];
    std::memcpy(words, shared.data(at), 16);
    for (int e = 0; e < kInRun; ++e) put(e, Number::value(words[e / Number::kIn32], e % Number::kIn32));
  };
  each_run_of_a(warp, m, [&](u64 at, int row, int k, bool along) {
    numbers(at, [&](int e, f32 value) { (along ? all.a[row][k + e] : all.a[row + e][k]) = value; });
  });
  each_run_of_b(warp, m, [&](u64 at, int column, int k, bool along) {
    numbers(at, [&](int e, f32 value) { (along ? all.b[k + e][column] : all.b[k][column + e]) = value; });
  });
  if (a_in_registers()) {
    take_a<Number>(warp, a(), all.a);
    for (int reg : a()) --warp.lent[reg];
  }
  std::memset(all.d, 0, sizeof all.d);
  if (m.adds) take_d(warp, d(), all);
  all.multiply(kDepth, columns());
  give_d(warp, d(), all);
  for (int reg : d()) {
    --warp.awaited[reg];
    warp.changed[reg] = 0;  // the next wgmma needs no fence for that
  }
}

template <class Number>
void add_wgmma(Table& t, const std::string& depth, const std::string& types) {
  for (int columns = 8; columns <= kMostColumns; columns += 8) {
    t["wgmma.mma_async.sync.m64n" + std::to_string(columns) + depth + ".f32." + types] =
        [](Warp& warp, const Instruction& i) { Wgmma<Number>{i}.start(warp); };
  }
}

// All but the latest groups are done; what is not committed is none of them.
void await_products(Warp& warp, const Instruction& i) {
  warp.need_all_lanes("wgmma.wait_group");
  size_t but = warp.lanes<u32>(i.operand(0))[0];
  while (warp.multiplications.size() > but + 1) {
    for (const Multiplication& m : warp.multiplications.front()) m.finish(warp, m);
    warp.multiplications.pop_front();
  }
}

}  // namespace

void add_products(Table& t) {
  t["mma.sync.m16n8k16.row.col.f32.f16.f16.f32"] = multiply<Half>;
  t["mma.sync.m16n8k16.row.col.f32.bf16.bf16.f32"] = multiply<Brain>;
  t["mma.sync.m16n8k8.row.col.f32.tf32.tf32.f32"] = multiply<Tensor32>;
  add_wgmma<Half>(t, "k16", "f16.f16");
  add_wgmma<Brain>(t, "k16", "bf16.bf16");
  add_wgmma<Tensor32>(t, "k8", "tf32.tf32");
  t["wgmma.fence.sync"] = [](Warp& warp, const Instruction&) {
    warp.need_all_lanes("wgmma.fence");
    ++warp.register_fences;
  };
  t["wgmma.commit_group.sync"] = [](Warp& warp, const Instruction&) { warp.multiplications.emplace_back(); };
  t["wgmma.wait_group.sync"] = await_products;
}

}  // namespace ptx
