#include "cuda/emulated/block.hpp"

#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>

namespace maskattn::cuda::emulated {

namespace {

struct Cancelled {};  // thrown in threads that wait when another has failed, so that their destructors run

}  // namespace

void Block::prepare(dim3 extent, std::size_t shared_bytes) {
  extent_ = extent;
  count_ = static_cast<int>(extent.x * extent.y * extent.z);
  threads_.assign(static_cast<std::size_t>(count_), {});
  while (fibers_.size() < threads_.size()) fibers_.push_back(std::make_unique<Fiber>());
  shared_bytes_ = shared_bytes;
  const std::size_t whole = 2 * kGuard + (shared_bytes + 1023) / 1024 * 1024;
  shared_.reset(static_cast<char*>(std::aligned_alloc(1024, whole)));
  if (!shared_) throw std::bad_alloc();
  std::memset(shared_.get(), kGuardByte, whole);
}

std::vector<int> Block::order_of(int count, std::mt19937& random) const {
  std::vector<int> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  if (settings().order == Order::reverse) std::reverse(order.begin(), order.end());
  if (settings().order == Order::shuffled) std::shuffle(order.begin(), order.end(), random);
  return order;
}

void Block::run(uint3 index, FunctionRef<void()> body) {
  blockIdx = index;
  body_ = &body;
  running_ = count_;
  cancelled_ = false;
  failure_ = nullptr;
  gatherings_.clear();
  for (Barrier& b : barriers_) b = {};
  std::memset(shared(), kUnwritten, shared_bytes_);
  for (int i = 0; i < count_; ++i) {
    const auto n = static_cast<unsigned>(i);
    threads_[n] = {Thread::State::ready, "", nullptr, {n % extent_.x, n / extent_.x % extent_.y, n / extent_.x / extent_.y}};
    fibers_[n]->begin(&Block::thread_main, this);
  }
  take_turns();
  if (failure_) {
    cancel();
    std::rethrow_exception(failure_);
  }
  check_guards();
}

void Block::thread_main(void* argument) {
  Block& self = *static_cast<Block*>(argument);
  try {
    (*self.body_)();
  } catch (const Cancelled&) {
  } catch (...) {
    if (!self.failure_) self.failure_ = std::current_exception();
  }
  self.threads_[static_cast<std::size_t>(self.current)].state = Thread::State::returned;
  --self.running_;
  self.release(self.barriers_[0]);
}

bool Block::take_turn(int thread) {
  Thread& t = threads_[static_cast<std::size_t>(thread)];
  if (t.state == Thread::State::returned) return false;
  current = thread;
  threadIdx = t.index;
  if (t.state == Thread::State::waiting) {
    if (!t.ready || !(*t.ready)()) return false;
    t.state = Thread::State::ready;
  }
  fibers_[static_cast<std::size_t>(thread)]->resume();
  return true;
}

// Warp by warp, and in a warp until none of its lanes can go on, which keeps their stacks in the caches.
void Block::take_turns() {
  std::mt19937 random(settings().seed + blockIdx.x);
  const std::vector<int> warps = order_of((count_ + kWarp - 1) / kWarp, random), lanes = order_of(kWarp, random);
  while (running_ > 0) {
    bool moved = false;
    for (const int warp : warps) {
      bool warp_moved = true;
      while (warp_moved) {
        warp_moved = false;
        for (const int lane : lanes)
          if (warp * kWarp + lane < count_) warp_moved |= take_turn(warp * kWarp + lane);
        if (failure_) return;
        moved |= warp_moved;
      }
    }
    if (!moved) {
      failure_ = std::make_exception_ptr(std::runtime_error("deadlock in " + where() + ": " + who_waits()));
      return;
    }
  }
}

void Block::cancel() {
  cancelled_ = true;
  for (int i = 0; i < count_; ++i) {
    Thread& t = threads_[static_cast<std::size_t>(i)];
    if (t.state == Thread::State::returned) continue;
    current = i;
    fibers_[static_cast<std::size_t>(i)]->resume();
  }
}

// Runs of threads that wait for the same.
std::string Block::who_waits() const {
  std::string all;
  const auto of = [&](int i) {
    const Thread& t = threads_[static_cast<std::size_t>(i)];
    return t.state == Thread::State::returned ? std::string("have returned") : std::string("wait in ") + t.why;
  };
  for (int i = 0, end; i < count_; i = end) {
    for (end = i + 1; end < count_ && of(end) == of(i);) ++end;
    all += (i ? "; threads " : "threads ") + std::to_string(i) + " to " + std::to_string(end - 1) + " " + of(i);
  }
  return all;
}

void Block::check_guards() const {
  const auto* bytes = reinterpret_cast<const unsigned char*>(shared_.get());
  const std::size_t end = 2 * kGuard + (shared_bytes_ + 1023) / 1024 * 1024;
  for (std::size_t i = 0; i < end; ++i) {
    if (i == kGuard) i += shared_bytes_;
    if (bytes[i] != kGuardByte)
      throw std::runtime_error(where() + " wrote to byte " +
                               std::to_string(static_cast<long long>(i) - static_cast<long long>(kGuard)) + " of " +
                               std::to_string(shared_bytes_) + " bytes of dynamic shared memory");
  }
}

void Block::suspend(const char* why, const FunctionRef<bool()>* ready) {
  const int mine = current;
  Thread& t = threads_[static_cast<std::size_t>(mine)];
  t.state = Thread::State::waiting;
  t.why = why;
  t.ready = ready;
  fibers_[static_cast<std::size_t>(mine)]->pause();
  t.ready = nullptr;
  if (cancelled_) throw Cancelled{};
}

void Block::wait_until_ready(const char* what, FunctionRef<bool()> ready) { suspend(what, &ready); }

void Block::release(Barrier& b) {
  const int expected = b.expected ? b.expected : running_;
  if (b.arrived == 0 || b.arrived < expected) return;
  for (const int thread : b.waiting) wake(thread);
  b = {};
}

void Block::barrier(int id, int threads, bool wait) {
  static constexpr const char* names[] = {"__syncthreads", "barrier 1",  "barrier 2",  "barrier 3", "barrier 4",  "barrier 5",
                                          "barrier 6",     "barrier 7",  "barrier 8",  "barrier 9", "barrier 10", "barrier 11",
                                          "barrier 12",    "barrier 13", "barrier 14", "barrier 15"};
  if (id < 0 || id > 15 || threads % kWarp != 0 || threads > (count_ + kWarp - 1) / kWarp * kWarp)
    throw std::runtime_error("barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads in a block of " +
                             std::to_string(count_));
  Barrier& b = barriers_[static_cast<std::size_t>(id)];
  if (b.arrived > 0 && b.expected != threads)
    throw std::runtime_error("threads of " + where() + " meet at barrier " + std::to_string(id) + " with different counts, " +
                             std::to_string(b.expected) + " and " + std::to_string(threads));
  b.expected = threads;
  ++b.arrived;
  Thread& t = threads_[static_cast<std::size_t>(current)];
  if (wait) {
    b.waiting.push_back(current);
    t.state = Thread::State::waiting;
  }
  release(b);
  if (wait && t.state == Thread::State::waiting) suspend(names[id], nullptr);
}

void Block::gather(const char* name, int group, std::uint32_t mask, void* mine, FunctionRef<void(void* const*)> function) {
  const int first = current / group * group, lane = current - first;
  Gathering* found = nullptr;
  for (Gathering& g : gatherings_) {
    if (current < g.first || current >= g.first + g.size) continue;
    const bool same = std::strcmp(g.name, name) == 0 && g.size == group && g.mask == mask;
    if (same) found = &g;
    if (!same && g.binds(current - g.first))
      throw std::runtime_error("lanes of a warp meet in different operations: thread " + std::to_string(current) + " of " +
                               where() + " is in " + name + " while others wait for it in " + g.name);
  }
  if (!found) {
    const int lanes = group == kWarp ? __popc(mask) : group;
    if (group == kWarp && !(mask >> lane & 1))
      throw std::runtime_error(std::string(name) + ": thread " + std::to_string(current) + " of " + where() +
                               " is not in its own mask");
    gatherings_.push_back({name, first, group, mask, lanes, {}});
    found = &gatherings_.back();
  }
  found->lanes[static_cast<std::size_t>(lane)] = mine;
  if (--found->missing > 0) return suspend(name, nullptr);
  const Gathering complete = *found;
  gatherings_.erase(gatherings_.begin() + (found - gatherings_.data()));
  function(complete.lanes.data());
  for (int i = 0; i < group; ++i)
    if (i != lane && complete.lanes[static_cast<std::size_t>(i)]) wake(first + i);
}

}  // namespace maskattn::cuda::emulated
