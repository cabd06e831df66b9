// Device regions: a device's registers and memory, mapped outside the address space.
//
// Invariants
// 1. A region is entered in the registry as other mappings are: closing it replaces its pages, by
//    0xff as a device that is gone would read, and the range stays while an ArrayBuffer is left.
// 2. The SIGBUS handler watches it until its range is unmapped. The lost word is set from the first
//    fault on, and by closing.
// 3. It belongs to the environment that mapped it; each environment may make ArrayBuffers over it.

#include "region.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "memory.h"
#include "sigbus.h"

namespace penstock {

namespace {

constexpr int64_t kRegionBytesMax = 1ll << 40;
constexpr int64_t kOffsetMax = 9007199254740991;

// Copies of one chunk of 0xff all over the range: a large region costs no memory to close.
bool placeChunks(uint64_t start, uint64_t bytes, const void* chunk) {
  const int fd = memfd_create("penstock-ones", MFD_CLOEXEC);
  if (fd < 0) return false;
  bool placed = pwrite(fd, chunk, kGranuleBytes, 0) == static_cast<ssize_t>(kGranuleBytes);
  for (uint64_t at = 0; placed && at < bytes; at += kGranuleBytes) {
    placed = mmap(reinterpret_cast<void*>(start + at), std::min(bytes - at, kGranuleBytes),
                  PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) != MAP_FAILED;
  }
  close(fd);
  return placed;
}

// Enters the mapped range; its id, or 0 with a failure.
uint32_t enterRegion(napi_env env, const Mapping& spec, Failure* failure) {
  Exclusive lock;
  const int error = installSigbus();
  const uint32_t slot = error == 0 ? takeSlot() : 0;
  if (slot == 0) {
    *failure = {error == 0 ? "regionMap" : "sigaction", error == 0 ? EMFILE : error};
    return 0;
  }
  Mapping& mapping = registry.mappings[slot];
  const uint32_t id = mapping.id;
  const uint32_t generation = mapping.generation;
  mapping = spec;
  mapping.id = id;
  mapping.generation = generation;
  mapping.owner = env;
  mapping.live = true;
  watchFaults(slot, mapping.start, mapping.bytes, mapping.pageBytes, mapping.writable);
  return id;
}

napi_value regionMap(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  int64_t offset, bytes;
  Mapping spec;
  if (!args.fd(0, "fd", &fd) || !args.integer(1, "offset", 0, kOffsetMax, &offset) ||
      !args.integer(2, "bytes", 1, kRegionBytesMax, &bytes) ||
      !args.boolean(3, "writable", &spec.writable)) {
    return nullptr;
  }
  if (!ownsDevice(env, fd) && !ownsDescriptor(env, fd)) return throwErrno(env, EBADF, "regionMap");
  spec.pageBytes = objectPageBytes(fd);
  if (spec.pageBytes == 0) return throwErrno(env, errno, "fstatfs");
  const int64_t unit = static_cast<int64_t>(spec.pageBytes);
  if (offset % unit != 0 || bytes % unit != 0) {
    return throwRange(env, "offset and bytes must be multiples of the object's page size, %lld",
                      static_cast<long long>(unit));
  }
  void* start = mmap(nullptr, static_cast<size_t>(bytes),
                     spec.writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, offset);
  if (start == MAP_FAILED) return throwErrno(env, errno, "mmap");
  spec.kind = kRegion;
  spec.start = reinterpret_cast<uint64_t>(start);
  spec.bytes = spec.backedBytes = static_cast<uint64_t>(bytes);
  Failure failure;
  const uint32_t id = enterRegion(env, spec, &failure);
  if (id != 0) return makeNumber(env, id);
  munmap(start, spec.bytes);
  return throwErrno(env, failure.error, failure.call);
}

napi_value regionBuffer(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  uint64_t bytes = 0;
  if (!args.u32(0, "region", &id)) return nullptr;
  {
    std::lock_guard lock(tableLock);
    const Mapping* mapping = findMapping(id);
    if (mapping != nullptr && mapping->kind == kRegion) bytes = mapping->bytes;
  }
  napi_value buffer = bytes == 0 ? nullptr : mappingBuffer(env, id, 0, bytes);
  return buffer != nullptr ? buffer : throwErrno(env, EBADF, "regionBuffer");
}

napi_value regionClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  if (!args.u32(0, "region", &id)) return nullptr;
  int error = 0;
  {
    Exclusive lock;
    Mapping* mapping = findMapping(id);
    if (mapping == nullptr || mapping->kind != kRegion || !mapping->live) {
      error = EBADF;
    } else if (mapping->owner != env) {
      error = EPERM;
    } else {
      closeLocked(*mapping);
    }
  }
  return error == 0 ? makeUndefined(env) : throwErrno(env, error, "regionClose");
}

}  // namespace

bool placeOnes(const Mapping& mapping) {
  const uint64_t chunkBytes = std::min(mapping.bytes, kGranuleBytes);
  void* chunk = mmap(nullptr, chunkBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (chunk == MAP_FAILED) return false;
  memset(chunk, 0xff, chunkBytes);
  // The word first: whoever reads 0xff can see that they mean nothing.
  statusWord(kLostWord + mapping.id % kSlots).store(1);
  if (chunkBytes == mapping.bytes) {
    void* const start = reinterpret_cast<void*>(mapping.start);
    if (mremap(chunk, chunkBytes, chunkBytes, MREMAP_MAYMOVE | MREMAP_FIXED, start) == start) {
      return true;
    }
    munmap(chunk, chunkBytes);
    return false;
  }
  const bool placed = placeChunks(mapping.start, mapping.bytes, chunk);
  munmap(chunk, chunkBytes);
  return placed;
}

bool initRegion(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "regionMap", regionMap) &&
         defineFunction(env, exports, "regionBuffer", regionBuffer) &&
         defineFunction(env, exports, "regionClose", regionClose);
}

}  // namespace penstock
