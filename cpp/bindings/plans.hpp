// What Python holds of masks and plans.
#pragma once

#include <memory>
#include <mutex>

#include "maskattn/mask.hpp"

namespace maskattn {

// An immutable expression.
struct MaskHandle {
  MaskRef mask;
};

// A place for a plan, which extend() renews while calls under way keep the plan that they began with.
class PlanHandle {
 public:
  explicit PlanHandle(MaskPlan plan) : plan_(std::make_shared<MaskPlan>(std::move(plan))) {}

  // The plan as it is now; it stays as it is while the caller holds it.
  std::shared_ptr<const MaskPlan> get() const {
    const std::lock_guard lock(guard_);
    return plan_;
  }
  // Without the GIL: a mask may want it. Nothing waits for it while the guard is held.
  void extend(std::int64_t n, int threads);

 private:
  mutable std::mutex guard_;
  std::shared_ptr<MaskPlan> plan_;
};

}  // namespace maskattn
