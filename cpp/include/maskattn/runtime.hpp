// Instruction sets, threads and precision.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "maskattn/attention.hpp"

namespace maskattn {

// Names of the instruction sets that this library was built with, best last, and of those that this machine can run.
std::vector<std::string> built_isas();
std::vector<std::string> runnable_isas();

// The set in use: MASKATTN_ISA if the environment names one, else the best runnable one.
// Throws std::invalid_argument when the environment names one that is unknown or not runnable.
std::string current_isa();
// Throws std::invalid_argument when `name` is not runnable. Calls that are under way finish with the former set.
void set_isa(const std::string& name);

// Threads for calls that do not say: OMP_NUM_THREADS or the machine's processors until set. At least 1.
int num_threads();
void set_num_threads(int count);
bool has_openmp();

// For calls that do not say: highest until set.
Precision default_precision();
void set_default_precision(Precision precision);

// The measure for kernels that are bound by arithmetic: `rounds` of nothing but multiply-adds of float32 on registers, on each
// of `threads` threads. Returns how many operations that were, two for each multiply-add.
double multiply_add(std::int64_t rounds, int threads);

}  // namespace maskattn
