// The registry: every mapping of the process, the address space they lie in, and the environments
// (main thread, workers) that opened them.
//
// Invariants
// 1. [BASE, BASE + 2^44) is reserved PROT_NONE at the first segment and stays reserved where no
//    segment lies. One byte per granule (the access map) says exactly which addresses are good.
// 2. A close replaces pages by anonymous ones at the same addresses, under the exclusive lock. The
//    range is given back (PROT_NONE) and used again only when no ArrayBuffer over it is left in
//    any environment. A stale view neither faults nor sees memory that is someone else's. Where
//    the kernel refuses to replace the pages, the range is never given back.
// 3. Native code touches segment memory only under the shared lock (SegmentLock).
// 4. The registry is one per process; an environment's end closes what it opened.
// 5. Finalisers of ArrayBuffers run from the event loop or an environment's end, never from inside
//    a Node-API call: they may take the locks.

#include "registry.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "memory.h"
#include "sigbus.h"

namespace penstock {

Registry registry;
pthread_rwlock_t spaceLock = PTHREAD_RWLOCK_INITIALIZER;
std::mutex tableLock;

namespace {

alignas(4096) uint32_t status[kStatusWords];

bool place(uint64_t start, uint64_t bytes, int protection) {
  return mmap(reinterpret_cast<void*>(start), bytes, protection,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

void setAccess(uint64_t address, uint64_t bytes, uint8_t value) {
  memset(registry.access + address / kGranuleBytes, value, bytes / kGranuleBytes);
}

// Gives the range back; the mapping is closed and nothing looks at it.
void releaseRange(Mapping& mapping) {
  if (mapping.kind == kForeign) {
    munmap(reinterpret_cast<void*>(mapping.start), mapping.bytes);
  } else if (place(mapping.start, mapping.bytes, PROT_NONE) && !mapping.retired) {
    registry.ranges.erase(mapping.start - kBase);
  }
  mapping.id = 0;
}

void closeDescriptors(Mapping& mapping) {
  if (mapping.fd >= 0) close(mapping.fd);
  if (mapping.readOnlyFd >= 0) close(mapping.readOnlyFd);
  mapping.fd = mapping.readOnlyFd = -1;
}

void onBufferGone(napi_env, void*, void* hint) {
  const uint32_t id = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(hint));
  Exclusive lock;
  Mapping* mapping = findMapping(id);
  if (mapping != nullptr) dropBuffer(*mapping);
}

void onEnvironmentEnd(void* data) {
  napi_env env = static_cast<napi_env>(data);
  Exclusive lock;
  auto found = registry.environments.find(env);
  if (found == registry.environments.end()) return;
  for (uint32_t index : found->second.liveness) statusWord(kLivenessWord + index).store(0);
  for (Mapping& mapping : registry.mappings) {
    if (mapping.id != 0 && mapping.owner == env && mapping.kind != kForeign) closeLocked(mapping);
  }
  for (int fd : found->second.descriptors) close(fd);
  registry.environments.erase(found);
}

// The environment's entry, or nullptr after its end: nothing is recorded for what no longer is, as
// a later environment may have the same address.
Environment* findEnvironment(napi_env env) {
  auto found = registry.environments.find(env);
  return found == registry.environments.end() ? nullptr : &found->second;
}

}  // namespace

Exclusive::Exclusive() {
  pthread_rwlock_wrlock(&spaceLock);
  tableLock.lock();
}

Exclusive::~Exclusive() {
  tableLock.unlock();
  pthread_rwlock_unlock(&spaceLock);
}

SegmentLock::SegmentLock() { pthread_rwlock_rdlock(&spaceLock); }
SegmentLock::~SegmentLock() { pthread_rwlock_unlock(&spaceLock); }

std::atomic_ref<uint32_t> statusWord(uint32_t index) {
  return std::atomic_ref<uint32_t>(status[index]);
}

uint32_t* statusArray() { return status; }

int reserveSpace() {
  if (registry.reserved) return 0;
  if (registry.access == nullptr) {
    void* map = mmap(nullptr, kAccessBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return errno;
    registry.access = static_cast<uint8_t*>(map);
  }
  void* base = mmap(reinterpret_cast<void*>(kBase), kSpaceBytes, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (base == MAP_FAILED) return errno;
  int error = EEXIST;  // a kernel before 4.17 takes the address as a wish
  if (reinterpret_cast<uint64_t>(base) == kBase) error = installSigbus();
  if (error != 0) {
    munmap(base, kSpaceBytes);
    return error;
  }
  registry.reserved = true;
  return 0;
}

uint64_t findRange(uint64_t bytes, uint64_t align) {
  const auto& ranges = registry.ranges;
  const uint64_t slotStart = registry.domain * kSlotBytes;
  uint64_t at = roundUp(slotStart, align);
  for (auto it = ranges.lower_bound(slotStart); it != ranges.end(); ++it) {
    if (it->first >= slotStart + kSlotBytes || it->first >= at + bytes) break;
    at = roundUp(it->first + it->second, align);
  }
  return at + bytes <= slotStart + kSlotBytes ? at : 0;
}

bool rangeFree(uint64_t address, uint64_t bytes) {
  auto it = registry.ranges.lower_bound(address + bytes);
  if (it == registry.ranges.begin()) return true;
  --it;
  return it->first + it->second <= address;
}

uint32_t takeSlot() {
  for (uint32_t slot = 1; slot < kSlots; slot++) {
    Mapping& mapping = registry.mappings[slot];
    if (mapping.id != 0) continue;
    const uint32_t generation = (mapping.generation + 1) & 0xfffff;
    mapping = Mapping{};
    mapping.generation = generation;
    mapping.id = slot + kSlots * generation;
    statusWord(kLostWord + slot).store(0);
    return slot;
  }
  return 0;
}

Mapping* findMapping(uint32_t id) {
  Mapping& mapping = registry.mappings[id % kSlots];
  return id != 0 && mapping.id == id ? &mapping : nullptr;
}

void publishSegment(uint32_t slot) {
  Mapping& mapping = registry.mappings[slot];
  mapping.live = true;
  registry.used = true;
  registry.ranges[mapping.start - kBase] = mapping.bytes;
  setAccess(mapping.start - kBase, mapping.bytes, mapping.writable ? 3 : 1);
  watchFaults(slot, mapping.start, mapping.bytes, mapping.pageBytes, mapping.writable);
  statusWord(kEpochWord).fetch_add(1);
}

void abandonSegment(Mapping& mapping) {
  // A failed MAP_FIXED may have left a hole: the reservation is mended too.
  if (mapping.start != 0 && !place(mapping.start, mapping.bytes, PROT_NONE)) {
    registry.ranges[mapping.start - kBase] = mapping.bytes;
  }
  closeDescriptors(mapping);
  mapping.id = 0;
}

void closeLocked(Mapping& mapping) {
  if (!mapping.live) return;
  mapping.live = false;
  if (mapping.kind != kForeign) {
    setAccess(mapping.start - kBase, mapping.bytes, 0);
    statusWord(kEpochWord).fetch_add(1);
  }
  if (!place(mapping.start, mapping.bytes, PROT_READ | PROT_WRITE)) {
    mapping.buffers++;  // the old pages stay: the range, and the handler's entry, are kept for good
  } else if (mapping.kind != kForeign) {
    unwatchFaults(mapping.id % kSlots);
  }
  closeDescriptors(mapping);
  if (mapping.buffers == 0) releaseRange(mapping);
}

void retireAddresses() {
  Exclusive lock;
  for (Mapping& mapping : registry.mappings) {
    if (mapping.id != 0 && mapping.kind != kForeign) mapping.retired = true;
  }
}

void dropBuffer(Mapping& mapping) {
  mapping.buffers--;
  if (mapping.buffers == 0 && !mapping.live) releaseRange(mapping);
}

napi_value externalBuffer(napi_env env, uint32_t id, uint64_t start, uint64_t bytes) {
  napi_value buffer;
  if (napi_create_external_arraybuffer(env, reinterpret_cast<void*>(start), bytes, onBufferGone,
                                       reinterpret_cast<void*>(static_cast<uintptr_t>(id)),
                                       &buffer) != napi_ok) {
    return nullptr;
  }
  Exclusive lock;
  Mapping* mapping = findMapping(id);
  if (mapping != nullptr) mapping->buffers++;
  return buffer;
}

napi_env livenessOwner(uint32_t index) {
  for (auto& entry : registry.environments) {
    if (entry.second.liveness.count(index) != 0) return entry.first;
  }
  return nullptr;
}

void* resolve(uint64_t address, uint64_t bytes, bool writable) {
  const uint8_t* access = registry.access;
  if (access == nullptr || address >= kSpaceBytes || bytes > kSpaceBytes - address) return nullptr;
  const uint8_t wanted = writable ? 3 : 1;
  const uint64_t last = bytes == 0 ? address : address + bytes - 1;
  for (uint64_t granule = address / kGranuleBytes; granule <= last / kGranuleBytes; granule++) {
    if ((access[granule] & wanted) != wanted) return nullptr;
  }
  return reinterpret_cast<void*>(kBase + address);
}

uint32_t adoptMapping(void* start, uint64_t bytes) {
  Exclusive lock;
  const uint32_t slot = takeSlot();
  if (slot == 0) return 0;
  Mapping& mapping = registry.mappings[slot];
  mapping.kind = kForeign;
  mapping.live = true;
  mapping.writable = true;
  mapping.start = reinterpret_cast<uint64_t>(start);
  mapping.bytes = mapping.backedBytes = bytes;
  return mapping.id;
}

napi_value mappingBuffer(napi_env env, uint32_t id, uint64_t offset, uint64_t bytes) {
  uint64_t start;
  {
    std::lock_guard lock(tableLock);
    Mapping* mapping = findMapping(id);
    if (mapping == nullptr || offset + bytes > mapping->bytes) return nullptr;
    start = mapping->start;
  }
  return externalBuffer(env, id, start + offset, bytes);
}

void closeMapping(uint32_t id) {
  Exclusive lock;
  Mapping* mapping = findMapping(id);
  if (mapping != nullptr) closeLocked(*mapping);
}

bool ownDescriptor(napi_env env, int fd) {
  std::lock_guard lock(tableLock);
  Environment* environment = findEnvironment(env);
  return environment != nullptr && environment->descriptors.insert(fd).second;
}

bool disownDescriptor(napi_env env, int fd) {
  std::lock_guard lock(tableLock);
  Environment* environment = findEnvironment(env);
  return environment != nullptr && environment->descriptors.erase(fd) != 0;
}

bool ownsDescriptor(napi_env env, int fd) {
  std::lock_guard lock(tableLock);
  Environment* environment = findEnvironment(env);
  return environment != nullptr && environment->descriptors.count(fd) != 0;
}

bool openEnvironment(napi_env env) {
  {
    std::lock_guard lock(tableLock);
    registry.environments[env];
  }
  return napi_add_env_cleanup_hook(env, onEnvironmentEnd, env) == napi_ok;
}

}  // namespace penstock
