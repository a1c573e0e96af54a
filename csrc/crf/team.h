// A team of threads that shares out loops.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace a2s::crf {

class Team {
 public:
  // The calling thread and `threads` - 1 others, which live as long as the team.
  explicit Team(int threads) {
    try {
      for (int i = 1; i < threads; ++i) others_.emplace_back([this] { serve(); });
    } catch (...) {
      dismiss();
      throw;
    }
  }
  ~Team() { dismiss(); }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Calls body(begin, end) on pieces of at most `grain` that cover [0, count), each on whichever thread is free, and
  // returns when all are done. The body must not throw, and its pieces must be independent of each other.
  template <class Body>
  void share(int64_t count, int64_t grain, const Body& body) {
    std::atomic<int64_t> next{0};
    const std::function<void()> work = [&] {
      for (int64_t begin; (begin = next.fetch_add(grain)) < count;) body(begin, std::min(begin + grain, count));
    };
    if (others_.empty() || count <= grain) return work();
    {
      const std::lock_guard lock(mutex_);
      work_ = &work;
      busy_ = others_.size();
      ++round_;
    }
    start_.notify_all();
    work();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return busy_ == 0; });
  }

 private:
  void serve() {
    uint64_t served = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      start_.wait(lock, [&] { return round_ != served || dismissed_; });
      if (dismissed_) return;
      served = round_;
      lock.unlock();
      (*work_)();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  void dismiss() {
    {
      const std::lock_guard lock(mutex_);
      dismissed_ = true;
    }
    start_.notify_all();
    for (std::thread& other : others_) other.join();
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void()>* work_ = nullptr;  // of the present round
  size_t busy_ = 0;                              // others that are still at it
  uint64_t round_ = 0;
  bool dismissed_ = false;
  std::vector<std::thread> others_;
};

}  // namespace a2s::crf
