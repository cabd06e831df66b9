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
// 4. The registry is one per process; an environment's end closes what it opened: what does DMA
//    first, then its liveness words (others learn that it ended), its segments, its descriptors.
// 5. Finalisers of ArrayBuffers run from the event loop or an environment's end, never from inside
//    a Node-API call: they may take the locks.

#include "registry.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "blocking.h"
#include "dma.h"
#include "memory.h"
#include "region.h"
#include "sigbus.h"
#include "sigsegv.h"

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
  if (!mapping.isSegment()) {
    if (mapping.kind == kRegion) unwatchFaults(mapping.id % kSlots);
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

// Device descriptors of the environment, for closing; its mappings of their registers, which would
// keep them open, go at once.
std::vector<int> takeDevices(napi_env env) {
  Exclusive lock;
  for (Mapping& mapping : registry.mappings) {
    if (mapping.id != 0 && mapping.owner == env && mapping.kind == kRegion) closeLocked(mapping);
  }
  Environment* environment = findEnvironment(env);
  if (environment == nullptr) return {};
  const std::set<int> devices = std::exchange(environment->devices, {});
  return {devices.begin(), devices.end()};
}

void onEnvironmentEnd(void* data) {
  napi_env env = static_cast<napi_env>(data);
  if (!closeDevices(takeDevices(env))) retireAddresses();
  Exclusive lock;
  auto found = registry.environments.find(env);
  if (found == registry.environments.end()) return;
  for (uint32_t index : found->second.liveness) statusWord(kLivenessWord + index).store(0);
  for (Mapping& mapping : registry.mappings) {
    if (mapping.id != 0 && mapping.owner == env && mapping.isSegment()) closeLocked(mapping);
  }
  for (int fd : found->second.descriptors) close(fd);
  endDomains(env);
  registry.environments.erase(found);
}

}  // namespace

// Nothing is recorded for an environment that no longer is: a later one may have the same address.
Environment* findEnvironment(napi_env env) {
  auto found = registry.environments.find(env);
  return found == registry.environments.end() ? nullptr : &found->second;
}

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
  if (error == 0) error = installSigsegv();
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
  if (mapping.isSegment()) {
    setAccess(mapping.start - kBase, mapping.bytes, 0);
    clearDomains(mapping);
    statusWord(kEpochWord).fetch_add(1);
  }
  const bool placed = mapping.kind == kRegion
                          ? placeOnes(mapping)
                          : place(mapping.start, mapping.bytes, PROT_READ | PROT_WRITE);
  if (!placed) {
    mapping.buffers++;  // the old pages stay: the range, and the handler's entry, are kept for good
  } else if (mapping.isSegment()) {
    unwatchFaults(mapping.id % kSlots);
  }
  closeDescriptors(mapping);
  if (mapping.buffers == 0) releaseRange(mapping);
}

void retireAddresses() {
  Exclusive lock;
  for (Mapping& mapping : registry.mappings) {
    if (mapping.id != 0 && mapping.isSegment()) mapping.retired = true;
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
    if (mapping == nullptr || !mapping->live) return nullptr;
    if (offset > mapping->bytes || bytes > mapping->bytes - offset) return nullptr;
    start = mapping->start;
    mapping->buffers++;  // another thread may close it while the ArrayBuffer is made
  }
  napi_value buffer = externalBuffer(env, id, start + offset, bytes);
  Exclusive lock;
  Mapping* mapping = findMapping(id);
  if (mapping != nullptr) dropBuffer(*mapping);
  return buffer;
}

void closeMapping(uint32_t id) {
  Exclusive lock;
  Mapping* mapping = findMapping(id);
  if (mapping != nullptr) closeLocked(*mapping);
}

namespace {

constexpr auto kDescriptors = &Environment::descriptors;
constexpr auto kDevices = &Environment::devices;

// What `change` makes of one of the environment's sets of descriptors; false after its end.
template <typename Change>
bool withSet(napi_env env, std::set<int> Environment::* set, Change change) {
  std::lock_guard lock(tableLock);
  Environment* environment = findEnvironment(env);
  return environment != nullptr && change(environment->*set);
}

bool insertInto(napi_env env, std::set<int> Environment::* set, int fd) {
  return withSet(env, set, [fd](std::set<int>& fds) { return fds.insert(fd).second; });
}

bool eraseFrom(napi_env env, std::set<int> Environment::* set, int fd) {
  return withSet(env, set, [fd](std::set<int>& fds) { return fds.erase(fd) != 0; });
}

bool isIn(napi_env env, std::set<int> Environment::* set, int fd) {
  return withSet(env, set, [fd](std::set<int>& fds) { return fds.count(fd) != 0; });
}

}  // namespace

bool ownDescriptor(napi_env env, int fd) { return insertInto(env, kDescriptors, fd); }
bool disownDescriptor(napi_env env, int fd) { return eraseFrom(env, kDescriptors, fd); }
bool ownsDescriptor(napi_env env, int fd) { return isIn(env, kDescriptors, fd); }
bool ownDevice(napi_env env, int fd) { return insertInto(env, kDevices, fd); }
bool disownDevice(napi_env env, int fd) { return eraseFrom(env, kDevices, fd); }
bool ownsDevice(napi_env env, int fd) { return isIn(env, kDevices, fd); }

bool openEnvironment(napi_env env) {
  {
    std::lock_guard lock(tableLock);
    registry.environments[env];
  }
  return napi_add_env_cleanup_hook(env, onEnvironmentEnd, env) == napi_ok;
}

}  // namespace penstock
