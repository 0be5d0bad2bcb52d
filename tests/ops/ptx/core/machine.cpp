#include "machine.h"

#include <algorithm>

namespace ptx {

Warp::Warp(Block& block, int index)
    : block(block),
      index(index),
      widths(block.kernel.widths.data()),
      registers(block.kernel.widths.size()),
      unknown(registers.size()),
      awaited(registers.size()),
      lent(registers.size()),
      changed(registers.size()) {}

void Warp::begin() {
  std::fill(unknown.begin(), unknown.end(), kAll);
  std::fill(awaited.begin(), awaited.end(), 0);
  std::fill(lent.begin(), lent.end(), 0);
  std::fill(changed.begin(), changed.end(), 0);
  pc = 0;
  here = active = kAll;
  elsewhere.clear();
  at_barrier = done = false;
  fences = fenced = 0;
  register_fences = 1;
  copies.assign(1, {});
  multiplications.assign(1, {});
}

Access Warp::access(int instruction) const {
  return {index, instruction, block.epoch, block.began};
}

void Warp::need_defined(int reg, const char* use) const {
  if (!is_defined(reg)) throw Fault{std::string(use) + " is not defined"};
}

void Warp::need_all_lanes(const char* name) const {
  if (active != kAll) throw Fault{std::string(name) + " by a part of a warp"};
}

void Warp::set(int reg, int lane, s64 value, bool defined) {
  Register& r = registers[reg];
  if (widths[reg] == 8) r.b64[lane] = static_cast<u64>(value);
  if (widths[reg] == 4) r.b32[lane] = static_cast<u32>(value);
  if (widths[reg] == 2) r.b16[lane] = static_cast<u16>(value);
  u32 bit = 1u << lane;
  unknown[reg] = defined ? unknown[reg] & ~bit : unknown[reg] | bit;
  changed[reg] = register_fences;
}

s64 Warp::get(int reg, int lane) {
  const Register& r = registers[reg];
  if (widths[reg] == 4) return static_cast<s32>(r.b32[lane]);
  return widths[reg] == 2 ? static_cast<s16>(r.b16[lane]) : static_cast<s64>(r.b64[lane]);
}

// The lanes for which the guard of an instruction holds.
u32 Warp::guarded(const Instruction& instruction) {
  if (instruction.guard < 0) return here;
  if (unknown[instruction.guard] & here) throw Fault{"a guard is not defined"};
  const bool* holds = lanes<bool>(instruction.guard);
  u32 found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= static_cast<u32>(holds[lane]) << lane;
  return here & (instruction.negated ? ~found : found);
}

void Warp::branch(int target) {
  if (active != here) {
    here &= ~active;
    elsewhere.emplace_back(target, active);
  } else {
    pc = target - 1;
  }
}

// The lanes that are furthest behind go on, together with all that are at the same place.
void Warp::rejoin() {
  elsewhere.emplace_back(pc, here);
  pc = std::min_element(elsewhere.begin(), elsewhere.end())->first;
  here = 0;
  std::erase_if(elsewhere, [this](const auto& lanes) {
    if (lanes.first == pc) here |= lanes.second;
    return lanes.first == pc;
  });
}

// The registers of a wgmma under way are not touched: those that it reads may be read.
void Warp::check_busy(const Instruction& instruction) const {
  for (int reg : instruction.registers) {
    if (awaited[reg]) throw Fault{"touches what a wgmma under way computes"};
  }
  for (int reg : instruction.written) {
    if (lent[reg]) throw Fault{"overwrites what a wgmma under way reads"};
  }
}

void Warp::run() {
  while (!at_barrier && !done) {
    if (!elsewhere.empty()) rejoin();
    const Instruction& instruction = block.kernel.instructions[pc];
    active = guarded(instruction);
    if (active) {
      if (!instruction.wgmma && under_way(multiplications)) check_busy(instruction);
      instruction.run(*this, instruction);
    }
    ++pc;
  }
}

Block::Block(const Kernel& kernel, std::vector<Area>& tensors, Grid grid, int count, u64 shared_size)
    : kernel(kernel),
      tensors(tensors),
      grid(grid),
      shared_data(shared_size),
      shared(kSharedBase, shared_size, shared_data.data(), true) {
  warps.reserve(count);
  for (int index = 0; index < count; ++index) warps.emplace_back(*this, index);
}

Fences Block::fences(const Warp& reader) const {
  Fences found{{}, reader.fenced};
  for (const Warp& warp : warps) found.counts.push_back(warp.fences);
  return found;
}

Area& Block::area(bool is_shared, u64 at, u64 size) {
  if (at % size) throw Fault{"an address is not a multiple of " + std::to_string(size)};
  if (is_shared) {
    if (shared.holds(at, size)) return shared;
    throw Fault{"address " + std::to_string(at - kSharedBase) + " lies outside of shared memory"};
  }
  auto after = std::upper_bound(tensors.begin(), tensors.end(), at,
                                [](u64 address, const Area& area) { return address < area.base(); });
  if (after != tensors.begin() && (--after)->holds(at, size)) return *after;
  throw Fault{"an address lies outside of all tensors"};
}

void Block::begin(Warp& warp, int x, int y, int z) {
  warp.begin();
  auto fill = [&](int reg, auto value_of) {
    for (int lane = 0; lane < kLanes; ++lane) {
      u64 value = value_of(lane);
      Register& r = warp.registers[reg];
      r.b64[lane] = value;
      r.b32[lane] = static_cast<u32>(value);
      r.b16[lane] = static_cast<u16>(value);
      r.b8[lane] = value != 0;
    }
    warp.unknown[reg] = 0;
  };
  for (const Constant& constant : kernel.constants) {
    fill(constant.reg, [&](int) { return constant.value; });
  }
  int threads = static_cast<int>(warps.size()) * kLanes;
  for (const Special& special : kernel.specials) {
    fill(special.reg, [&](int lane) {
      int values[] = {warp.index * kLanes + lane, 0, 0, threads, 1, 1, x, y, z, grid.x, grid.y, grid.z, lane};
      return static_cast<u64>(values[special.kind]);
    });
  }
}

void Block::run(int x, int y, int z, bool reversed) {
  began = ++epoch;
  for (Warp& warp : warps) begin(warp, x, y, z);
  auto is_done = [](const Warp& warp) { return warp.done; };
  while (!std::all_of(warps.begin(), warps.end(), is_done)) {
    for (size_t k = 0; k < warps.size(); ++k) {
      running = &warps[reversed ? warps.size() - 1 - k : k];
      running->at_barrier = false;
      running->run();
    }
    ++epoch;
    if (std::any_of(warps.begin(), warps.end(), is_done)) break;
  }
  for (Warp& warp : warps) {
    running = &warp;
    if (!warp.done) throw Fault{"waits for a warp that has ended"};
  }
}

}  // namespace ptx
