#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "amx.hpp"
#include "maskattn/runtime.hpp"
#include "threads.hpp"

// The rows that CMake generates from its table of instruction sets, best last: MASKATTN_ISA_ROW(name, what the CPU must report,
// the set whose vector kernels it uses, the function that gives its matrix kernels or no_matrices).
#define MASKATTN_ISA_ROW(name, needs, vectors, matrices)            \
  extern "C" const maskattn::Kernels* maskattn_kernels_##vectors(); \
  extern "C" const maskattn::Matrices* matrices();                  \
  extern "C" const maskattn::LinearTable* maskattn_linears_##name();
#include "isa_rows.inc"
#undef MASKATTN_ISA_ROW

extern "C" const maskattn::Matrices* maskattn_no_matrices() {
  static constexpr maskattn::Matrices none{};
  return &none;
}

namespace maskattn {
namespace {

struct IsaRow {
  const char* name;
  bool runnable;
  const Kernels* kernels;
  const Matrices* matrices;
  const LinearTable* linears;
};

const std::vector<IsaRow>& isa_rows() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
#endif
  static const std::vector<IsaRow> rows = {
#define MASKATTN_ISA_ROW(name, needs, vectors, matrices) \
  {#name, (needs), maskattn_kernels_##vectors(), matrices(), maskattn_linears_##name()},
#include "isa_rows.inc"
#undef MASKATTN_ISA_ROW
  };
  return rows;
}

std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const IsaRow& find_runnable(const std::string& name, const char* argument) {
  for (const auto& row : isa_rows())
    if (name == row.name && row.runnable) return row;
  throw std::invalid_argument(std::string(argument) + " must be an instruction set that this machine can run, got '" + name +
                              "'; choose one of " + list(runnable_isas()));
}

const IsaRow& initial() {
  if (const char* name = std::getenv("MASKATTN_ISA"); name && *name) return find_runnable(name, "MASKATTN_ISA");
  const IsaRow* best = &isa_rows().front();
  for (const auto& row : isa_rows())
    if (row.runnable) best = &row;
  return *best;
}

std::atomic<const IsaRow*>& current() {
  static std::atomic<const IsaRow*> row{&initial()};
  return row;
}

}  // namespace

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const auto& row : isa_rows()) names.emplace_back(row.name);
  return names;
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const auto& row : isa_rows())
    if (row.runnable) names.emplace_back(row.name);
  return names;
}

namespace {
std::atomic<Precision> precision{Precision::highest};
}
Precision default_precision() { return precision.load(std::memory_order_relaxed); }
void set_default_precision(Precision level) { precision.store(level, std::memory_order_relaxed); }

std::string current_isa() { return current().load()->name; }
void set_isa(const std::string& name) { current().store(&find_runnable(name, "name")); }

Set current_set() {
  const IsaRow* row = current().load(std::memory_order_relaxed);
  return {*row->kernels, *row->matrices};
}
const LinearTable& current_linears() { return *current().load(std::memory_order_relaxed)->linears; }
const Kernels& current_kernels() { return current_set().kernels; }

double multiply_add(std::int64_t rounds, int threads) {
  const auto& table = kernel_table<float>();
  parallel_for(threads, threads, [&](std::int64_t) {
    float sums[kProbeChains] = {};
    table.multiply_add(rounds, sums);
  });
  return 2.0 * static_cast<double>(rounds) * table.lanes * kProbeChains * threads;
}

}  // namespace maskattn
