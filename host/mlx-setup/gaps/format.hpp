// Gap 1: std::format where the standard library has none.
//
// mlx-c builds a few messages with std::format, which GCC 12 (Debian 12) does not
// ship. This is the part of it that those messages use: "{}" and nothing else, for
// anything an ostream can print. Adding to namespace std is not allowed by the
// standard's letter; it is safe here because <format> is known to be absent, and the
// code below is compiled into one translation unit that nothing else includes.

#pragma once

#include <version>

#if __has_include(<format>)
#include <format>
#endif

#ifndef __cpp_lib_format
#include <sstream>
#include <string>
#include <string_view>

namespace std {

template <typename... Values>
string format(string_view pattern, const Values&... values) {
  ostringstream out;
  // Prints the text up to the next "{}", then the value that stands for it.
  [[maybe_unused]] auto print = [&](const auto& value) {
    const auto hole = pattern.find("{}");
    out << pattern.substr(0, hole);
    if (hole == string_view::npos) {
      pattern = {};
      return;
    }
    out << value;
    pattern.remove_prefix(hole + 2);
  };
  (print(values), ...);
  out << pattern;
  return out.str();
}

} // namespace std
#endif
