// What JavaScript reads of the registry without a call per look: the status words, the access map,
// liveness words; and physical addresses.

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "memory.h"
#include "registry.h"

namespace penstock {

namespace {

napi_value staticBuffer(napi_env env, void* start, size_t bytes) {
  napi_value buffer;
  if (napi_create_external_arraybuffer(env, start, bytes, nullptr, nullptr, &buffer) != napi_ok) {
    return nullptr;
  }
  return buffer;
}

napi_value statusWords(napi_env env, napi_callback_info) {
  return staticBuffer(env, statusArray(), kStatusWords * sizeof(uint32_t));
}

napi_value accessMap(napi_env env, napi_callback_info) {
  int error;
  {
    Exclusive lock;
    error = reserveSpace();
  }
  if (error != 0) return throwErrno(env, error, "mmap");
  return staticBuffer(env, registry.access, kAccessBytes);
}

napi_value segmentPhysical(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t address, pageBytes;
  void* out;
  size_t outBytes;
  if (!args.integer(0, "address", 0, kSpaceBytes - 1, &address)) return nullptr;
  if (!args.integer(1, "pageBytes", 4096, 1 << 30, &pageBytes)) return nullptr;
  if (!args.view(2, "out", 4, &out, &outBytes)) return nullptr;
  if (!validPageBytes(pageBytes)) return throwRange(env, "pageBytes must be 4096, 2 MiB or 1 GiB");
  const size_t pages = outBytes / 8;
  const uint64_t first = address / pageBytes * pageBytes;
  const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return throwErrno(env, errno, "open(/proc/self/pagemap)");
  uint32_t* words = static_cast<uint32_t*>(out);
  uint32_t known = 0;
  bool good;
  {
    SegmentLock lock;
    good = pages != 0 && resolve(first, pages * pageBytes, false) != nullptr;
    for (size_t i = 0; good && i < pages; i++) {
      uint64_t entry = 0;
      const uint64_t page = (kBase + first + i * pageBytes) / 4096;
      if (pread(fd, &entry, 8, static_cast<off_t>(page * 8)) != 8) entry = 0;
      const uint64_t frame = entry & ((1ull << 55) - 1);
      const uint64_t physical = (entry >> 63) != 0 ? frame * 4096 : 0;  // 0 without CAP_SYS_ADMIN
      words[2 * i] = static_cast<uint32_t>(physical);
      words[2 * i + 1] = static_cast<uint32_t>(physical >> 32);
      if (physical != 0) known++;
    }
  }
  close(fd);
  return good ? makeNumber(env, known) : throwErrno(env, EFAULT, "segmentPhysical");
}

// Claims a free word for the environment: its index, or 0.
uint32_t claimLiveness(napi_env env) {
  std::lock_guard lock(tableLock);
  static uint32_t serial = 0;
  for (uint32_t index = 1; index < kLivenessWords; index++) {
    if (statusWord(kLivenessWord + index).load() != 0 || livenessOwner(index) != nullptr) continue;
    serial = serial == UINT32_MAX ? 1 : serial + 1;
    registry.environments[env].liveness.insert(index);
    statusWord(kLivenessWord + index).store(serial);
    return index;
  }
  return 0;
}

napi_value livenessOpen(napi_env env, napi_callback_info) {
  const uint32_t index = claimLiveness(env);
  return index == 0 ? throwErrno(env, EMFILE, "livenessOpen") : makeNumber(env, index);
}

napi_value livenessClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t index;
  if (!args.integer(0, "index", 1, kLivenessWords - 1, &index)) return nullptr;
  bool held;
  {
    std::lock_guard lock(tableLock);
    held = registry.environments[env].liveness.erase(static_cast<uint32_t>(index)) != 0;
    if (held) statusWord(kLivenessWord + static_cast<uint32_t>(index)).store(0);
  }
  return held ? makeUndefined(env) : throwErrno(env, EBADF, "livenessClose");
}

}  // namespace

void countCopies(uint32_t count, uint64_t bytes) {
  statusWord(kCopiesWord).fetch_add(count, std::memory_order_relaxed);
  auto* both = reinterpret_cast<uint64_t*>(statusArray() + kCopiedBytesWord);
  std::atomic_ref(*both).fetch_add(bytes, std::memory_order_relaxed);
}

bool initStatus(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "segmentPhysical", segmentPhysical) &&
         defineFunction(env, exports, "statusWords", statusWords) &&
         defineFunction(env, exports, "accessMap", accessMap) &&
         defineFunction(env, exports, "livenessOpen", livenessOpen) &&
         defineFunction(env, exports, "livenessClose", livenessClose);
}

}  // namespace penstock
