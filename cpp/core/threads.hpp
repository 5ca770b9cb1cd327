// Parallel loops. Which thread runs which piece never changes a result.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

namespace maskattn {

// Threads that a loop may use now: `wanted`, or 1 where starting a team is impossible (a forked child of a process that
// already had one: the runtime's threads did not survive the fork).
int usable_threads(int wanted);
void note_team_started();

// Calls body(index) for 0 <= index < count, in any order, on up to `threads` threads, and passes on the first exception.
template <class Body>
void parallel_for(std::int64_t count, int threads, const Body& body) {
  threads = count < threads ? static_cast<int>(count) : threads;
  if (threads <= 1 || (threads = usable_threads(threads)) <= 1) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
#ifdef _OPENMP
  note_team_started();
  std::exception_ptr error;
  std::mutex guard;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (std::int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
      const std::lock_guard lock(guard);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
#endif
}

}  // namespace maskattn
