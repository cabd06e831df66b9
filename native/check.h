// Arguments and errors at the border between JavaScript and the addon.
//
// Every function reads its arguments through `Args`, which checks count, type and range and leaves
// a pending TypeError or RangeError (code ERR_INVALID_ARG) when one is off: the function then
// returns nullptr at once. Failing system calls leave an Error with code, errno and syscall.

#pragma once

#include <node_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace penstock {

constexpr uint64_t kBase = 1ull << 46;          // BASE: virtual address = kBase + Address
constexpr uint64_t kSpaceBytes = 1ull << 44;    // addresses are below this
constexpr uint64_t kSlotBytes = 1ull << 36;     // one domain's slot
constexpr uint64_t kGranuleBytes = 1ull << 21;  // 2 MiB: segments are placed and sized in these

class Args {
 public:
  static constexpr size_t kMax = 8;
  Args(napi_env env, napi_callback_info info);

  napi_env env() const { return env_; }
  void* data() const { return data_; }
  napi_value at(size_t i) const { return values_[i]; }
  bool absent(size_t i) const;  // undefined or null

  // Each returns false with an exception pending when the argument does not fit.
  bool integer(size_t i, const char* name, int64_t min, int64_t max, int64_t* out) const;
  bool u32(size_t i, const char* name, uint32_t* out) const;
  bool i32(size_t i, const char* name, int32_t* out) const;
  bool fd(size_t i, const char* name, int* out) const;
  bool boolean(size_t i, const char* name, bool* out) const;
  bool string(size_t i, const char* name, size_t maxBytes, std::string* out) const;
  bool function(size_t i, const char* name) const;
  // Any typed array or DataView: its memory, valid until the call returns. elementBytes 0: any.
  bool view(size_t i, const char* name, size_t elementBytes, void** data, size_t* bytes) const;
  // An array of integers.
  bool integers(size_t i, const char* name, int64_t min, int64_t max, int64_t* out, size_t capacity,
                size_t* count) const;
  // A property of an object argument; `fallback` when it is undefined.
  bool property(size_t i, const char* name, int64_t min, int64_t max, int64_t fallback,
                int64_t* out) const;

 private:
  napi_env env_;
  size_t count_ = kMax;
  napi_value values_[kMax] = {};
  void* data_ = nullptr;
};

// Leaves an exception pending and returns nullptr, so that callers can `return throwErrno(…)`.
napi_value throwErrno(napi_env env, int error, const char* syscall);
napi_value throwRange(napi_env env, const char* format, ...) __attribute__((format(printf, 2, 3)));
napi_value throwType(napi_env env, const char* format, ...) __attribute__((format(printf, 2, 3)));

napi_value makeNumber(napi_env env, double value);
napi_value makeNumbers(napi_env env, const double* values, size_t count);
napi_value makeUndefined(napi_env env);
bool setNumber(napi_env env, napi_value object, const char* name, double value);
bool defineFunction(napi_env env, napi_value exports, const char* name, napi_callback callback);

// Each file's part of the exports.
bool initMemory(napi_env env, napi_value exports);
bool initUring(napi_env env, napi_value exports);
bool initEvent(napi_env env, napi_value exports);
bool initSocket(napi_env env, napi_value exports);
bool initCpu(napi_env env, napi_value exports);
bool initHash(napi_env env, napi_value exports);
bool initCopy(napi_env env, napi_value exports);
bool initFingerprints(napi_env env, napi_value exports);
bool initDma(napi_env env, napi_value exports);
bool initRegion(napi_env env, napi_value exports);
bool initVfio(napi_env env, napi_value exports);

}  // namespace penstock
