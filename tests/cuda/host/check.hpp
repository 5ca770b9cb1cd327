// Tests without a framework: a test is a function, a check that fails says where, and main() runs all.
#pragma once

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

struct Test {
  const char* name;
  void (*body)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
inline int failures = 0;

#define TEST(name)                                                              \
  static void name();                                                           \
  static const bool name##_is_known = (tests().push_back({#name, name}), true); \
  static void name()

#define CHECK(condition)                                          \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                 \
    }                                                             \
  } while (false)

// What a function throws, or "" if it does not.
template <class Function>
std::string error_of(const Function& function) {
  try {
    function();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}
inline bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

inline int run_tests() {
  for (const Test& test : tests()) {
    const int before = failures;
    const std::string error = error_of(test.body);
    if (!error.empty()) {
      std::printf("%s threw: %s\n", test.name, error.c_str());
      ++failures;
    }
    std::printf("%s %s\n", failures == before ? "ok    " : "FAILED", test.name);
  }
  return failures ? 1 : 0;
}
