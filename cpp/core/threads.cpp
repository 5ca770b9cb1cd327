#include "threads.hpp"

#include <atomic>
#include <thread>

#include "maskattn/runtime.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace maskattn {
namespace {

std::atomic<int> default_threads{0};  // 0: not set
std::atomic<bool> team_started{false};
std::atomic<bool> team_lost{false};

void after_fork_in_child() { team_lost = team_started.load(); }

}  // namespace

int usable_threads(int wanted) {
#ifdef _OPENMP
  return team_lost ? 1 : wanted;
#else
  (void)wanted;
  return 1;
#endif
}

void note_team_started() {
  if (team_started.exchange(true)) return;
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, after_fork_in_child);
#endif
}

int num_threads() {
  if (const int set = default_threads.load()) return set;
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void set_num_threads(int count) { default_threads = count; }

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace maskattn
