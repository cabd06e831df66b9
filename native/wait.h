// How native code blocks: in slices, so that worker.terminate() and process exit, which join the
// thread, never wait for longer than one. Between slices an empty JavaScript function is called,
// whose stack check notices termination.

#pragma once

#include <node_api.h>

#include <algorithm>
#include <cstdint>
#include <ctime>

#include "room.h"

namespace penstock {

constexpr int64_t kSliceNs = 200'000'000;

// A hundred years, so that arithmetic in nanoseconds cannot overflow.
constexpr int64_t kTimeoutUsMax = 3'155'760'000'000'000;

inline int64_t monotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

inline timespec toTimespec(int64_t ns) {
  return {.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
}

// The time a blocking call may still wait, cut into slices.
class Deadline {
 public:
  explicit Deadline(int64_t timeoutUs)
      : limited_(timeoutUs >= 0), endNs_(limited_ ? monotonicNs() + timeoutUs * 1000 : 0) {}

  // The next slice; `last` when the deadline lies in it.
  timespec slice(bool* last) const {
    const int64_t left = limited_ ? std::max<int64_t>(endNs_ - monotonicNs(), 0) : INT64_MAX;
    *last = left <= kSliceNs;
    return toTimespec(std::min(left, kSliceNs));
  }

  bool passed() const { return limited_ && monotonicNs() >= endNs_; }

 private:
  bool limited_;
  int64_t endNs_;
};

// False, with the termination pending, when this environment is being stopped.
inline bool mayGoOn(napi_env env, const Room* room) {
  napi_value function, receiver;
  return napi_get_reference_value(env, room->emptyFunction, &function) == napi_ok &&
         napi_get_undefined(env, &receiver) == napi_ok &&
         napi_call_function(env, receiver, function, 0, nullptr, nullptr) == napi_ok;
}

}  // namespace penstock
