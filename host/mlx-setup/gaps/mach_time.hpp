// Gap 3: the clock of macOS that seeds mlx-rs's default random state.
//
// mlx-rs asks mach_approximate_time() for a number that differs from run to run and
// for nothing else, so any clock in nanoseconds will do.

#pragma once

#include <chrono>
#include <cstdint>

extern "C" std::uint64_t mach_approximate_time() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}
