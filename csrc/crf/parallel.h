// A loop shared by threads. The module has no torch and no OpenMP.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace a2s::crf {

// Calls body(begin, end) on ranges of at most `grain` that cover [0, count). The calling thread and up to `threads` - 1
// new ones each take the next range until none is left. If the system starts no more threads, there are fewer. The body
// must not throw, and its ranges must be independent of each other.
template <class Body>
void parallel_for(int threads, int64_t count, int64_t grain, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t begin; (begin = next.fetch_add(grain)) < count;) body(begin, std::min(begin + grain, count));
  };
  const int64_t ranges = (count + grain - 1) / grain;
  std::vector<std::thread> others;
  others.reserve(threads);
  try {
    while (static_cast<int64_t>(others.size()) + 1 < std::min<int64_t>(threads, ranges)) others.emplace_back(work);
  } catch (const std::system_error&) {
  }
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace a2s::crf
