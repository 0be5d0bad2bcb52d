// Branches and barriers, and what the lanes of a warp tell each other.
#include <algorithm>

#include "machine.h"

namespace ptx {

namespace {

void wait_at_barrier(Warp& warp, const Instruction& i) {
  warp.need_all_lanes("bar.sync");
  if (warp.lanes<u32>(i.operand(0))[0] != 0) throw Fault{"waits at a barrier that is not known here"};
  warp.at_barrier = true;
}

void end(Warp& warp, const Instruction&) {
  if (warp.active != kAll) throw Fault{"a part of a warp ends"};
  if (under_way(warp.copies)) throw Fault{"ends with cp.async under way"};
  if (under_way(warp.multiplications)) throw Fault{"ends with wgmma under way"};
  warp.done = true;
}

// The lane from which each takes a value, itself where there is none, as PTX defines them.
enum Direction { kUp, kDown, kButterfly, kIndex };

template <Direction direction>
void shuffle(Warp& warp, const Instruction& i) {
  warp.need_all_lanes("shfl.sync");
  const u32 *a = warp.lanes<u32>(i.operand(1)), *by = warp.lanes<u32>(i.operand(2));
  const u32* clamp = warp.lanes<u32>(i.operand(3));
  u32 found[kLanes], unknown = warp.unknown[i.operand(2)] | warp.unknown[i.operand(3)];
  for (int lane = 0; lane < kLanes; ++lane) {
    int segment = clamp[lane] >> 8 & 31, most = (lane & segment) | (clamp[lane] & 31 & ~segment);
    int least = lane & segment, b = by[lane] & 31, from = lane;
    if (direction == kUp) from = lane - b >= most ? lane - b : lane;
    if (direction == kDown) from = lane + b <= most ? lane + b : lane;
    if (direction == kButterfly) from = (lane ^ b) <= most ? lane ^ b : lane;
    if (direction == kIndex) from = ((b & ~segment) | least) <= most ? (b & ~segment) | least : lane;
    found[lane] = a[from];
    unknown |= (warp.unknown[i.operand(1)] >> from & 1) << lane;
  }
  warp.write(i.operand(0), found, unknown);
}

// Of all lanes, for all of them.
template <class T, class F>
Handler reduced(F) {
  return [](Warp& warp, const Instruction& i) {
    warp.need_all_lanes("redux.sync");
    const T* a = warp.lanes<T>(i.operand(1));
    T found[kLanes];
    T total = a[0];
    for (int lane = 1; lane < kLanes; ++lane) total = F{}(total, a[lane]);
    std::fill_n(found, kLanes, total);
    warp.write(i.operand(0), found, warp.unknown[i.operand(1)] ? kAll : 0);
  };
}

template <class T>
void add_reductions(Table& t, const std::string& type) {
  t["redux.sync.add." + type] = reduced<T>([](T a, T b) -> T { return a + b; });
  t["redux.sync.min." + type] = reduced<T>([](T a, T b) -> T { return std::min(a, b); });
  t["redux.sync.max." + type] = reduced<T>([](T a, T b) -> T { return std::max(a, b); });
}

u32 ballot(Warp& warp, int predicate) {
  warp.need_all_lanes("vote.sync");
  const bool* given = warp.lanes<bool>(predicate);
  u32 found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= static_cast<u32>(given[lane]) << lane;
  return found;
}

template <class T, class F>
Handler voted(F) {
  return [](Warp& warp, const Instruction& i) {
    T found[kLanes];
    std::fill_n(found, kLanes, F{}(ballot(warp, i.operand(1))));
    warp.write(i.operand(0), found, warp.unknown[i.operand(1)] ? kAll : 0);
  };
}

}  // namespace

void add_control(Table& t) {
  t["bra"] = [](Warp& warp, const Instruction& i) { warp.branch(i.operand(0)); };
  t["ret"] = t["exit"] = end;
  t["trap"] = [](Warp&, const Instruction&) { throw Fault{"traps"}; };
  t["bar.sync"] = wait_at_barrier;
  t["bar.warp.sync"] = [](Warp& warp, const Instruction&) { warp.need_all_lanes("bar.warp.sync"); };
  t["fence.proxy.async.shared::cta"] = [](Warp& warp, const Instruction&) {
    ++warp.fences;
    warp.fenced = warp.block.epoch;
  };
  t["shfl.sync.up.b32"] = shuffle<kUp>;
  t["shfl.sync.down.b32"] = shuffle<kDown>;
  t["shfl.sync.bfly.b32"] = shuffle<kButterfly>;
  t["shfl.sync.idx.b32"] = shuffle<kIndex>;
  add_reductions<s32>(t, "s32");
  add_reductions<u32>(t, "u32");
  t["redux.sync.and.b32"] = reduced<u32>([](u32 a, u32 b) { return a & b; });
  t["redux.sync.or.b32"] = reduced<u32>([](u32 a, u32 b) { return a | b; });
  t["redux.sync.xor.b32"] = reduced<u32>([](u32 a, u32 b) { return a ^ b; });
  t["vote.sync.ballot.b32"] = voted<u32>([](u32 votes) { return votes; });
  t["vote.sync.any.pred"] = voted<bool>([](u32 votes) { return votes != 0; });
  t["vote.sync.all.pred"] = voted<bool>([](u32 votes) { return votes == kAll; });
}

}  // namespace ptx
