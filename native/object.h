// Memory objects behind segments: memfds made here, and what may be asked of a descriptor that came
// from elsewhere.

#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <utility>

#include "registry.h"

namespace penstock {

// After these nobody maps the object writable any more, whoever opens it and as whom; mappings made
// before go on writing. Nor does its size change.
constexpr int kSharedSeals = F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
constexpr uint64_t kMaxSegmentBytes = 2ull << 30;

// A descriptor on its way somewhere; closed unless it got there.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int give() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// A memfd of `bytes`, its pages taken now where they are hugepages or `whole`; -1 with a failure.
int makeObject(int64_t bytes, int64_t pageBytes, bool whole, Failure* failure);

}  // namespace penstock
