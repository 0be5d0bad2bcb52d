// What ../machine.py calls.
#include <algorithm>
#include <cstdio>

#include "machine.h"

namespace {

using namespace ptx;

const Table& handlers() {
  static const Table table = [] {
    Table all;
    add_arithmetic(all);
    add_bits(all);
    add_conversions(all);
    add_transfers(all);
    add_control(all);
    add_products(all);
    return all;
  }();
  return table;
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

struct ptx_tensor {
  u64 base, size;
  s32 number;  // see Area
};

struct ptx_launch {
  const Constant* constants;
  const ptx_tensor* tensors;  // by address
  s32 constant_count, tensor_count;
  s32 warps, shared;  // bytes
  s32 x, y, z;
  s32 reversed;  // programs and warps run in the opposite order
};

struct ptx_report {
  char what[256];
  s32 instruction, other;  // that it clashes with, or -1
  s32 warp, x, y, z;
};

// Widths: see Kernel.
EXPORT Kernel* ptx_new(const u8* widths, s32 registers, const Special* specials, s32 count) {
  return new Kernel{{}, {}, {specials, specials + count}, {widths, widths + registers}};
}

EXPORT void ptx_delete(Kernel* kernel) {
  delete kernel;
}

// Adds an instruction; false where its name is not known. Operands are given one after the other:
// whether they begin with registers (all of a vector's, one of an address's), their length, and they.
EXPORT bool ptx_add(Kernel* kernel, const char* name, s32 guard, bool negated, const s32* operands,
                    s32 count) {
  auto found = handlers().find(name);
  if (found == handlers().end()) return false;
  Instruction made{found->second, guard, negated, std::strncmp(name, "wgmma", 5) == 0, {}, {0}, {}, {}};
  for (const s32* operand = operands; operand < operands + count; operand += 2 + operand[1]) {
    const s32 *first = operand + 2, registers = operand[0];
    if (made.groups() == 0 && registers == operand[1]) made.written.assign(first, first + registers);
    made.registers.insert(made.registers.end(), first, first + registers);
    made.items.insert(made.items.end(), first, first + operand[1]);
    made.starts.push_back(static_cast<int>(made.items.size()));
  }
  kernel->instructions.push_back(std::move(made));
  return true;
}

// Runs all programs of a grid. Returns whether all went well; else the report says what did not.
EXPORT bool ptx_run(Kernel* kernel, const ptx_launch* launch, ptx_report* report) {
  kernel->constants.assign(launch->constants, launch->constants + launch->constant_count);
  std::vector<Area> tensors;
  for (const ptx_tensor* t = launch->tensors; t < launch->tensors + launch->tensor_count; ++t) {
    tensors.emplace_back(t->base, t->size, reinterpret_cast<u8*>(t->base), false, t->number);
  }
  Block block(*kernel, tensors, {launch->x, launch->y, launch->z}, launch->warps, launch->shared);
  int programs = launch->x * launch->y * launch->z;
  for (int k = 0; k < programs; ++k) {
    int program = launch->reversed ? programs - 1 - k : k;
    int x = program % launch->x, y = program / launch->x % launch->y, z = program / launch->x / launch->y;
    try {
      block.run(x, y, z, launch->reversed);
    } catch (const Fault& fault) {
      std::snprintf(report->what, sizeof report->what, "%s", fault.what.c_str());
      report->instruction = block.running->pc;
      report->other = fault.other;
      report->warp = block.running->index;
      report->x = x, report->y = y, report->z = z;
      return false;
    }
  }
  return true;
}
}
