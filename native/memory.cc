// Memory: the address space, its segments, and the process-wide registry of mappings.
//
// Invariants
// 1. [BASE, BASE + 2^44) is reserved PROT_NONE at the first segment. Every segment lies in it at
//    granule (2 MiB) boundaries and fills whole granules; where the backing object is shorter (imported
//    memory) anonymous pages fill the last granule. So one byte per granule (the access map) says
//    exactly which addresses are good.
// 2. A close replaces pages by anonymous ones at the same addresses, under the exclusive lock. The range
//    is given back (PROT_NONE) and used again only when no ArrayBuffer over it is left in any
//    environment. A stale view neither faults nor sees memory that is someone else's.
// 3. Native code touches segment memory only under the shared lock (SegmentLock).
// 4. The registry is one per process, for all environments; an environment's end closes what it opened.
// 5. A mapping whose object vanished (SIGBUS) gets pages of 0xff and its `lost` word set; the handler
//    uses only atomics and system calls.

#include "memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

#include "check.h"

namespace penstock {

namespace {

enum Kind : uint8_t { kPrivate, kShared, kDevice, kImported, kAdmitted, kForeign };

constexpr uint32_t kSlots = 4096;          // mappings of one process at a time
constexpr uint64_t kMaxSegmentBytes = 2ull << 30;
constexpr uint32_t kLostWord = 16;         // status word of mapping slot 0
constexpr uint32_t kLivenessWord = kLostWord + kSlots;
constexpr uint32_t kLivenessWords = 4096;
constexpr uint64_t kAccessBytes = kSpaceBytes / kGranuleBytes;
constexpr int kSharedSeals = F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;

struct Mapping {
  uint32_t id = 0;  // slot + 4096 * generation; 0: slot free
  bool live = false;
  Kind kind = kPrivate;
  bool writable = false;
  uint64_t start = 0;  // virtual address
  uint64_t bytes = 0;
  uint64_t backedBytes = 0;
  uint64_t pageBytes = 4096;
  uint64_t companion = 0;
  int fd = -1;          // the object
  int readOnlyFd = -1;  // what a shared segment hands out
  napi_env owner = nullptr;
  uint32_t buffers = 0;  // ArrayBuffers over it, all environments
  uint32_t generation = 0;
};

// What the SIGBUS handler reads, without locks.
struct Watched {
  std::atomic<uint64_t> start{0};
  std::atomic<uint64_t> end{0};
  std::atomic<uint64_t> pageBytes{4096};
  std::atomic<bool> writable{true};
};

struct Environment {
  std::map<uint32_t, napi_ref> buffers;  // weak, by mapping id
  std::set<int> descriptors;
  std::set<uint32_t> liveness;
};

pthread_rwlock_t spaceLock = PTHREAD_RWLOCK_INITIALIZER;
std::mutex tableLock;  // taken inside spaceLock when both are held
Mapping mappings[kSlots];
Watched watched[kSlots];
alignas(4096) uint32_t status[kLivenessWord + kLivenessWords];
uint8_t* access_ = nullptr;  // the access map; its own mapping, 8 MiB of untouched zero pages
std::map<uint64_t, uint64_t> ranges;  // occupied address ranges: start → bytes
std::map<napi_env, Environment> environments;
uint32_t domain = 1;
bool reserved = false;
bool used = false;  // a segment existed: the domain is fixed
struct sigaction previousSigbus;

std::atomic_ref<uint32_t> statusWord(uint32_t index) { return std::atomic_ref<uint32_t>(status[index]); }

void onSigbus(int signal, siginfo_t* info, void* context) {
  const int savedErrno = errno;
  const uint64_t fault = reinterpret_cast<uint64_t>(info->si_addr);
  for (uint32_t slot = 1; slot < kSlots; slot++) {
    const uint64_t start = watched[slot].start.load(std::memory_order_acquire);
    if (start == 0 || fault < start || fault >= watched[slot].end.load()) continue;
    const uint64_t pageBytes = watched[slot].pageBytes.load();
    const uint64_t page = fault & ~(pageBytes - 1);
    void* fresh = mmap(nullptr, pageBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fresh == MAP_FAILED) break;
    memset(fresh, 0xff, pageBytes);
    if (!watched[slot].writable.load()) mprotect(fresh, pageBytes, PROT_READ);
    if (mremap(fresh, pageBytes, pageBytes, MREMAP_MAYMOVE | MREMAP_FIXED,
               reinterpret_cast<void*>(page)) == MAP_FAILED) {
      break;
    }
    statusWord(kLostWord + slot).store(1);
    statusWord(1).fetch_add(1);
    errno = savedErrno;
    return;
  }
  errno = savedErrno;
  if ((previousSigbus.sa_flags & SA_SIGINFO) != 0 && previousSigbus.sa_sigaction != nullptr) {
    previousSigbus.sa_sigaction(signal, info, context);
  } else if (previousSigbus.sa_handler != SIG_DFL && previousSigbus.sa_handler != SIG_IGN) {
    previousSigbus.sa_handler(signal);
  } else {
    struct sigaction original = {};
    original.sa_handler = SIG_DFL;
    sigaction(SIGBUS, &original, nullptr);  // the access runs again and ends the process
  }
}

// 0 or an errno. Under tableLock.
int reserveSpace() {
  if (reserved) return 0;
  if (access_ == nullptr) {
    void* map = mmap(nullptr, kAccessBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return errno;
    access_ = static_cast<uint8_t*>(map);
  }
  void* base = mmap(reinterpret_cast<void*>(kBase), kSpaceBytes, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (base == MAP_FAILED) return errno;
  if (reinterpret_cast<uint64_t>(base) != kBase) {  // a kernel before 4.17 takes it as a wish
    munmap(base, kSpaceBytes);
    return EEXIST;
  }
  struct sigaction action = {};
  action.sa_sigaction = onSigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  if (sigaction(SIGBUS, &action, &previousSigbus) != 0) return errno;
  reserved = true;
  return 0;
}

uint64_t roundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// Lowest free aligned address in the process's slot, or 0. Under tableLock.
uint64_t findRange(uint64_t bytes, uint64_t align) {
  const uint64_t slotStart = domain * kSlotBytes;
  uint64_t at = roundUp(slotStart, align);
  for (auto it = ranges.lower_bound(slotStart); it != ranges.end(); ++it) {
    if (it->first >= slotStart + kSlotBytes || it->first >= at + bytes) break;
    at = roundUp(it->first + it->second, align);
  }
  return at + bytes <= slotStart + kSlotBytes ? at : 0;
}

bool rangeFree(uint64_t address, uint64_t bytes) {
  auto it = ranges.lower_bound(address + bytes);
  if (it == ranges.begin()) return true;
  --it;
  return it->first + it->second <= address;
}

void setAccess(uint64_t address, uint64_t bytes, uint8_t value) {
  memset(access_ + address / kGranuleBytes, value, bytes / kGranuleBytes);
}

void bumpEpoch() { statusWord(0).fetch_add(1); }

// A free slot, or 0. Under tableLock.
uint32_t takeSlot() {
  for (uint32_t slot = 1; slot < kSlots; slot++) {
    if (mappings[slot].id != 0) continue;
    const uint32_t generation = (mappings[slot].generation + 1) & 0xfffff;
    mappings[slot] = Mapping{};
    mappings[slot].generation = generation;
    mappings[slot].id = slot + kSlots * generation;
    statusWord(kLostWord + slot).store(0);
    return slot;
  }
  return 0;
}

void watch(uint32_t slot) {
  const Mapping& mapping = mappings[slot];
  watched[slot].end.store(mapping.start + mapping.bytes);
  watched[slot].pageBytes.store(mapping.pageBytes);
  watched[slot].writable.store(mapping.writable);
  watched[slot].start.store(mapping.start, std::memory_order_release);
}

Mapping* findMapping(uint32_t id) {
  Mapping& mapping = mappings[id % kSlots];
  return id != 0 && mapping.id == id ? &mapping : nullptr;
}

// Gives the range back; the mapping is closed and nothing looks at it. Under both locks.
void releaseRange(Mapping& mapping) {
  if (mapping.kind == kForeign) {
    munmap(reinterpret_cast<void*>(mapping.start), mapping.bytes);
  } else {
    mmap(reinterpret_cast<void*>(mapping.start), mapping.bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    ranges.erase(mapping.start - kBase);
  }
  mapping.id = 0;
}

// Under both locks.
void closeLocked(Mapping& mapping) {
  if (!mapping.live) return;
  mapping.live = false;
  watched[mapping.id % kSlots].start.store(0, std::memory_order_release);
  if (mapping.kind != kForeign) {
    setAccess(mapping.start - kBase, mapping.bytes, 0);
    bumpEpoch();
  }
  mmap(reinterpret_cast<void*>(mapping.start), mapping.bytes, PROT_READ | PROT_WRITE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (mapping.fd >= 0) close(mapping.fd);
  if (mapping.readOnlyFd >= 0) close(mapping.readOnlyFd);
  mapping.fd = mapping.readOnlyFd = -1;
  if (mapping.buffers == 0) releaseRange(mapping);
}

class Exclusive {
 public:
  Exclusive() {
    pthread_rwlock_wrlock(&spaceLock);
    tableLock.lock();
  }
  ~Exclusive() {
    tableLock.unlock();
    pthread_rwlock_unlock(&spaceLock);
  }
};

void onBufferGone(napi_env, void*, void* hint) {
  const uint32_t id = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(hint));
  Exclusive lock;
  Mapping* mapping = findMapping(id);
  if (mapping == nullptr) return;
  mapping->buffers--;
  if (mapping->buffers == 0 && !mapping->live) releaseRange(*mapping);
}

void onEnvironmentEnd(void* data) {
  napi_env env = static_cast<napi_env>(data);
  Exclusive lock;
  auto found = environments.find(env);
  if (found == environments.end()) return;
  for (uint32_t index : found->second.liveness) statusWord(kLivenessWord + index).store(0);
  for (Mapping& mapping : mappings) {
    if (mapping.id != 0 && mapping.owner == env && mapping.kind != kForeign) closeLocked(mapping);
  }
  for (int fd : found->second.descriptors) close(fd);
  environments.erase(found);
}

// Page size of the object behind fd, or 0 with errno.
uint64_t objectPageBytes(int fd) {
  struct statfs info;
  if (fstatfs(fd, &info) != 0) return 0;
  return info.f_type == HUGETLBFS_MAGIC ? static_cast<uint64_t>(info.f_bsize) : 4096;
}

bool validPageBytes(uint64_t pageBytes) {
  return pageBytes == 4096 || pageBytes == (2ull << 20) || pageBytes == (1ull << 30);
}

// An external ArrayBuffer over part of a mapping; counts it.
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

napi_value memoryJoin(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t wanted;
  if (!args.integer(0, "domain", 1, 255, &wanted)) return nullptr;
  std::lock_guard lock(tableLock);
  if (used) return throwErrno(env, EBUSY, "memoryJoin");
  domain = static_cast<uint32_t>(wanted);
  return makeUndefined(env);
}

napi_value memoryDomain(napi_env env, napi_callback_info) {
  std::lock_guard lock(tableLock);
  return makeNumber(env, domain);
}

// Enters a mapped range into the registry; the caller has filled everything but id and live.
void publishSegment(uint32_t slot, uint64_t address) {
  Mapping& mapping = mappings[slot];
  mapping.live = true;
  used = true;
  ranges[address] = mapping.bytes;
  setAccess(address, mapping.bytes, mapping.writable ? 3 : 1);
  watch(slot);
  bumpEpoch();
}

// Undoes a half-made segment and throws.
napi_value failSegment(napi_env env, Mapping& mapping, int fd, const char* call, int error) {
  if (mapping.start != 0) {
    mmap(reinterpret_cast<void*>(mapping.start), mapping.bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }
  if (fd >= 0) close(fd);
  if (mapping.readOnlyFd >= 0) close(mapping.readOnlyFd);
  mapping.id = 0;
  return throwErrno(env, error, call);
}

// The environment that holds a liveness word, or nullptr. Under tableLock.
napi_env livenessOwner(uint32_t index) {
  for (auto& entry : environments) {
    if (entry.second.liveness.count(index) != 0) return entry.first;
  }
  return nullptr;
}

napi_value segmentCreate(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t bytes, pageBytes, kind;
  if (!args.integer(0, "bytes", kGranuleBytes, kMaxSegmentBytes, &bytes)) return nullptr;
  if (!args.integer(1, "pageBytes", 4096, 1 << 30, &pageBytes)) return nullptr;
  if (!args.integer(2, "kind", kPrivate, kDevice, &kind)) return nullptr;
  int64_t liveness = 0;
  if (!args.absent(3) && !args.integer(3, "liveness", 0, kLivenessWords - 1, &liveness)) return nullptr;
  if (!validPageBytes(pageBytes)) return throwRange(env, "pageBytes must be 4096, 2 MiB or 1 GiB");
  if (bytes % static_cast<int64_t>(kGranuleBytes) != 0 || bytes % pageBytes != 0) {
    return throwRange(env, "bytes must be a multiple of 2 MiB and of pageBytes");
  }
  Exclusive lock;
  napi_env owner = liveness == 0 ? env : livenessOwner(static_cast<uint32_t>(liveness));
  if (owner == nullptr) return throwErrno(env, ESRCH, "segmentCreate");
  if (int error = reserveSpace()) return throwErrno(env, error, "mmap");
  const uint32_t slot = takeSlot();
  if (slot == 0) return throwErrno(env, EMFILE, "segmentCreate");
  Mapping& mapping = mappings[slot];
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (pageBytes == (2 << 20)) flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  if (pageBytes == (1 << 30)) flags |= MFD_HUGETLB | MFD_HUGE_1GB;
  const int fd = memfd_create("penstock", flags);
  if (fd < 0) return failSegment(env, mapping, -1, "memfd_create", errno);
  if (ftruncate(fd, bytes) != 0) return failSegment(env, mapping, fd, "ftruncate", errno);
  // Hugepages are taken now: a page that cannot be had later would be a SIGBUS.
  if (pageBytes != 4096 && fallocate(fd, 0, 0, bytes) != 0) {
    return failSegment(env, mapping, fd, "fallocate", errno == ENOSPC ? ENOMEM : errno);
  }
  const uint64_t address = findRange(bytes, std::max<uint64_t>(kGranuleBytes, pageBytes));
  if (address == 0) return failSegment(env, mapping, fd, "segmentCreate", ENOMEM);
  mapping.kind = static_cast<Kind>(kind);
  mapping.writable = true;
  mapping.bytes = mapping.backedBytes = bytes;
  mapping.pageBytes = pageBytes;
  mapping.owner = owner;
  void* at = mmap(reinterpret_cast<void*>(kBase + address), bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_FIXED, fd, 0);
  if (at == MAP_FAILED) return failSegment(env, mapping, fd, "mmap", errno);
  mapping.start = kBase + address;
  if (kind == kShared) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    mapping.readOnlyFd = open(path, O_RDONLY | O_CLOEXEC);
    if (mapping.readOnlyFd < 0) return failSegment(env, mapping, fd, "open", errno);
    if (fcntl(fd, F_ADD_SEALS, kSharedSeals) != 0) {
      return failSegment(env, mapping, fd, "fcntl(F_ADD_SEALS)", errno);
    }
  }
  mapping.fd = fd;
  publishSegment(slot, address);
  return makeNumber(env, mapping.id);
}

napi_value segmentImport(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int source;
  int64_t offset, bytes;
  bool writable;
  if (!args.fd(0, "fd", &source)) return nullptr;
  if (!args.integer(1, "offset", 0, INT64_MAX >> 1, &offset)) return nullptr;
  if (!args.integer(2, "bytes", 4096, kMaxSegmentBytes, &bytes)) return nullptr;
  if (!args.boolean(3, "writable", &writable)) return nullptr;
  const uint64_t pageBytes = objectPageBytes(source);
  if (pageBytes == 0) return throwErrno(env, errno, "fstatfs");
  if (offset % static_cast<int64_t>(pageBytes) != 0 || bytes % static_cast<int64_t>(pageBytes) != 0) {
    return throwRange(env, "offset and bytes must be multiples of the object's page size, %llu",
                      static_cast<unsigned long long>(pageBytes));
  }
  struct stat facts;
  if (fstat(source, &facts) != 0) return throwErrno(env, errno, "fstat");
  if (S_ISREG(facts.st_mode) && offset + bytes > facts.st_size) {
    return throwErrno(env, EOVERFLOW, "segmentImport");
  }
  Exclusive lock;
  if (int error = reserveSpace()) return throwErrno(env, error, "mmap");
  const uint32_t slot = takeSlot();
  if (slot == 0) return throwErrno(env, EMFILE, "segmentImport");
  Mapping& mapping = mappings[slot];
  const uint64_t whole = roundUp(bytes, kGranuleBytes);
  const uint64_t address = findRange(whole, std::max<uint64_t>(kGranuleBytes, pageBytes));
  if (address == 0) return failSegment(env, mapping, -1, "segmentImport", ENOMEM);
  const int fd = fcntl(source, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return failSegment(env, mapping, -1, "fcntl(F_DUPFD)", errno);
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  mapping.bytes = whole;
  mapping.start = kBase + address;
  if (whole != static_cast<uint64_t>(bytes) &&
      mmap(reinterpret_cast<void*>(kBase + address), whole, protection,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
    return failSegment(env, mapping, fd, "mmap", errno);
  }
  if (mmap(reinterpret_cast<void*>(kBase + address), bytes, protection, MAP_SHARED | MAP_FIXED, fd,
           offset) == MAP_FAILED) {
    return failSegment(env, mapping, fd, "mmap", errno);
  }
  mapping.kind = kImported;
  mapping.writable = writable;
  mapping.backedBytes = bytes;
  mapping.pageBytes = pageBytes;
  mapping.owner = env;
  mapping.fd = fd;
  publishSegment(slot, address);
  return makeNumber(env, mapping.id);
}

napi_value segmentAdmit(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int source;
  int64_t address, bytes, pageBytes;
  if (!args.fd(0, "fd", &source)) return nullptr;
  if (!args.integer(1, "address", kSlotBytes, kSpaceBytes - kGranuleBytes, &address)) return nullptr;
  if (!args.integer(2, "bytes", kGranuleBytes, kMaxSegmentBytes, &bytes)) return nullptr;
  if (!args.integer(3, "pageBytes", 4096, 1 << 30, &pageBytes)) return nullptr;
  const int64_t align = std::max<int64_t>(kGranuleBytes, pageBytes);
  if (!validPageBytes(pageBytes) || address % align != 0 || bytes % align != 0) {
    return throwErrno(env, EINVAL, "segmentAdmit(alignment)");
  }
  const uint64_t slotOf = address / kSlotBytes;
  if ((address + bytes - 1) / kSlotBytes != slotOf) {
    return throwErrno(env, EINVAL, "segmentAdmit(slot)");
  }
  const int seals = fcntl(source, F_GET_SEALS);
  if (seals < 0 || (seals & kSharedSeals) != kSharedSeals) {
    return throwErrno(env, EPERM, "segmentAdmit(seals)");
  }
  if ((fcntl(source, F_GETFL) & O_ACCMODE) != O_RDONLY) {
    return throwErrno(env, EPERM, "segmentAdmit(access mode)");
  }
  struct stat facts;
  if (fstat(source, &facts) != 0) return throwErrno(env, errno, "fstat");
  if (facts.st_size != bytes) return throwErrno(env, EINVAL, "segmentAdmit(size)");
  if (facts.st_blocks * 512 < bytes) return throwErrno(env, EINVAL, "segmentAdmit(holes)");
  if (objectPageBytes(source) != static_cast<uint64_t>(pageBytes)) {
    return throwErrno(env, EINVAL, "segmentAdmit(page size)");
  }
  Exclusive lock;
  if (slotOf == domain) return throwErrno(env, EINVAL, "segmentAdmit(own slot)");
  if (int error = reserveSpace()) return throwErrno(env, error, "mmap");
  if (!rangeFree(address, bytes)) return throwErrno(env, EEXIST, "segmentAdmit");
  const uint32_t slot = takeSlot();
  if (slot == 0) return throwErrno(env, EMFILE, "segmentAdmit");
  Mapping& mapping = mappings[slot];
  const int fd = fcntl(source, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return failSegment(env, mapping, -1, "fcntl(F_DUPFD)", errno);
  if (mmap(reinterpret_cast<void*>(kBase + address), bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd,
           0) == MAP_FAILED) {
    return failSegment(env, mapping, fd, "mmap", errno);
  }
  mapping.kind = kAdmitted;
  mapping.start = kBase + address;
  mapping.bytes = mapping.backedBytes = bytes;
  mapping.pageBytes = pageBytes;
  mapping.owner = env;
  mapping.fd = fd;
  publishSegment(slot, address);
  return makeNumber(env, mapping.id);
}

// The live segment of argument 0, or nullptr with an exception. Under tableLock.
Mapping* segmentArgument(const Args& args, const char* call) {
  uint32_t id;
  if (!args.u32(0, "segment", &id)) return nullptr;
  Mapping* mapping = findMapping(id);
  if (mapping != nullptr && mapping->live && mapping->kind != kForeign) return mapping;
  throwErrno(args.env(), EBADF, call);
  return nullptr;
}

napi_value segmentInfo(napi_env env, napi_callback_info info) {
  Args args(env, info);
  std::lock_guard lock(tableLock);
  Mapping* mapping = segmentArgument(args, "segmentInfo");
  if (mapping == nullptr) return nullptr;
  napi_value result, writable;
  napi_create_object(env, &result);
  setNumber(env, result, "id", mapping->id);
  setNumber(env, result, "address", mapping->start - kBase);
  setNumber(env, result, "bytes", mapping->bytes);
  setNumber(env, result, "backedBytes", mapping->backedBytes);
  setNumber(env, result, "pageBytes", mapping->pageBytes);
  setNumber(env, result, "kind", mapping->kind);
  setNumber(env, result, "companion", mapping->companion);
  napi_get_boolean(env, mapping->writable, &writable);
  napi_set_named_property(env, result, "writable", writable);
  return result;
}

napi_value segmentFind(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t address;
  if (!args.integer(0, "address", 0, kSpaceBytes - 1, &address)) return nullptr;
  std::lock_guard lock(tableLock);
  auto it = ranges.upper_bound(address);
  if (it == ranges.begin()) return makeNumber(env, 0);
  --it;
  if (static_cast<uint64_t>(address) >= it->first + it->second) return makeNumber(env, 0);
  for (const Mapping& mapping : mappings) {
    if (mapping.id != 0 && mapping.live && mapping.start == kBase + it->first) {
      return makeNumber(env, mapping.id);
    }
  }
  return makeNumber(env, 0);
}

napi_value segmentIds(napi_env env, napi_callback_info) {
  napi_value result;
  napi_create_array(env, &result);
  std::lock_guard lock(tableLock);
  uint32_t count = 0;
  for (const Mapping& mapping : mappings) {
    if (mapping.id == 0 || !mapping.live || mapping.kind == kForeign) continue;
    napi_set_element(env, result, count++, makeNumber(env, mapping.id));
  }
  return result;
}

napi_value setSegmentCompanion(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t address;
  if (!args.integer(1, "address", 0, kSpaceBytes - 1, &address)) return nullptr;
  std::lock_guard lock(tableLock);
  Mapping* mapping = segmentArgument(args, "setSegmentCompanion");
  if (mapping == nullptr) return nullptr;
  mapping->companion = address;
  return makeUndefined(env);
}

napi_value segmentFd(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int copy;
  {
    std::lock_guard lock(tableLock);
    Mapping* mapping = segmentArgument(args, "segmentFd");
    if (mapping == nullptr) return nullptr;
    if (mapping->kind != kShared && mapping->kind != kDevice) {
      return throwErrno(env, EPERM, "segmentFd");
    }
    const int fd = mapping->kind == kShared ? mapping->readOnlyFd : mapping->fd;
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) return throwErrno(env, errno, "fcntl(F_DUPFD)");
  }
  ownDescriptor(env, copy);
  return makeNumber(env, copy);
}

napi_value segmentBuffer(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  uint64_t start, bytes;
  napi_ref old = nullptr;
  {
    std::lock_guard lock(tableLock);
    Mapping* mapping = segmentArgument(args, "segmentBuffer");
    if (mapping == nullptr) return nullptr;
    id = mapping->id;
    start = mapping->start;
    bytes = mapping->bytes;
    // Held by count while the ArrayBuffer is made, so that a close meanwhile keeps the range.
    mapping->buffers++;
    auto& buffers = environments[env].buffers;
    auto found = buffers.find(id);
    if (found != buffers.end()) {
      old = found->second;
      buffers.erase(found);
    }
  }
  napi_value buffer = nullptr;
  if (old != nullptr) {
    napi_get_reference_value(env, old, &buffer);
    if (buffer == nullptr) napi_delete_reference(env, old);
  }
  if (buffer == nullptr) {
    buffer = externalBuffer(env, id, start, bytes);
    old = nullptr;
    if (buffer != nullptr) napi_create_reference(env, buffer, 0, &old);
  }
  Exclusive lock;
  if (old != nullptr) environments[env].buffers[id] = old;
  Mapping* mapping = findMapping(id);
  if (mapping != nullptr) {
    mapping->buffers--;
    if (mapping->buffers == 0 && !mapping->live) releaseRange(*mapping);
  }
  return buffer;
}

napi_value segmentClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  napi_ref reference = nullptr;
  {
    Exclusive lock;
    Mapping* mapping = segmentArgument(args, "segmentClose");
    if (mapping == nullptr) return nullptr;
    auto& buffers = environments[env].buffers;
    auto found = buffers.find(mapping->id);
    if (found != buffers.end()) {
      reference = found->second;
      buffers.erase(found);
    }
    closeLocked(*mapping);
  }
  if (reference != nullptr) napi_delete_reference(env, reference);
  return makeUndefined(env);
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
  SegmentLock lock;
  if (pages == 0 || resolve(first, pages * pageBytes, false) == nullptr) {
    return throwErrno(env, EFAULT, "segmentPhysical");
  }
  const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return throwErrno(env, errno, "open(/proc/self/pagemap)");
  uint32_t* words = static_cast<uint32_t*>(out);
  uint32_t known = 0;
  for (size_t i = 0; i < pages; i++) {
    uint64_t entry = 0;
    const uint64_t page = (kBase + first + i * pageBytes) / 4096;
    if (pread(fd, &entry, 8, page * 8) != 8) entry = 0;
    const uint64_t frame = entry & ((1ull << 55) - 1);
    const uint64_t physical = (entry >> 63) != 0 ? frame * 4096 : 0;  // 0 without CAP_SYS_ADMIN
    words[2 * i] = static_cast<uint32_t>(physical);
    words[2 * i + 1] = static_cast<uint32_t>(physical >> 32);
    if (physical != 0) known++;
  }
  close(fd);
  return makeNumber(env, known);
}

napi_value staticBuffer(napi_env env, void* start, size_t bytes) {
  napi_value buffer;
  if (napi_create_external_arraybuffer(env, start, bytes, nullptr, nullptr, &buffer) != napi_ok) {
    return nullptr;
  }
  return buffer;
}

napi_value statusWords(napi_env env, napi_callback_info) {
  return staticBuffer(env, status, sizeof status);
}

napi_value accessMap(napi_env env, napi_callback_info) {
  {
    std::lock_guard lock(tableLock);
    if (int error = reserveSpace()) return throwErrno(env, error, "mmap");
  }
  return staticBuffer(env, access_, kAccessBytes);
}

napi_value livenessOpen(napi_env env, napi_callback_info) {
  std::lock_guard lock(tableLock);
  for (uint32_t index = 1; index < kLivenessWords; index++) {
    if (statusWord(kLivenessWord + index).load() != 0) continue;
    if (livenessOwner(index) != nullptr) continue;
    static uint32_t serial = 0;
    serial = serial == UINT32_MAX ? 1 : serial + 1;
    statusWord(kLivenessWord + index).store(serial);
    environments[env].liveness.insert(index);
    return makeNumber(env, index);
  }
  return throwErrno(env, EMFILE, "livenessOpen");
}

napi_value livenessClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t index;
  if (!args.integer(0, "index", 1, kLivenessWords - 1, &index)) return nullptr;
  std::lock_guard lock(tableLock);
  if (environments[env].liveness.erase(static_cast<uint32_t>(index)) == 0) {
    return throwErrno(env, EBADF, "livenessClose");
  }
  statusWord(kLivenessWord + index).store(0);
  return makeUndefined(env);
}

}  // namespace

SegmentLock::SegmentLock() { pthread_rwlock_rdlock(&spaceLock); }
SegmentLock::~SegmentLock() { pthread_rwlock_unlock(&spaceLock); }

void* resolve(uint64_t address, uint64_t bytes, bool writable) {
  if (access_ == nullptr || address >= kSpaceBytes || bytes > kSpaceBytes - address) return nullptr;
  const uint8_t wanted = writable ? 3 : 1;
  const uint64_t last = bytes == 0 ? address : address + bytes - 1;
  for (uint64_t granule = address / kGranuleBytes; granule <= last / kGranuleBytes; granule++) {
    if ((access_[granule] & wanted) != wanted) return nullptr;
  }
  return reinterpret_cast<void*>(kBase + address);
}

uint32_t adoptMapping(void* start, uint64_t bytes) {
  Exclusive lock;
  const uint32_t slot = takeSlot();
  if (slot == 0) return 0;
  Mapping& mapping = mappings[slot];
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
  return environments[env].descriptors.insert(fd).second;
}

bool disownDescriptor(napi_env env, int fd) {
  std::lock_guard lock(tableLock);
  return environments[env].descriptors.erase(fd) != 0;
}

bool ownsDescriptor(napi_env env, int fd) {
  std::lock_guard lock(tableLock);
  return environments[env].descriptors.count(fd) != 0;
}

bool initMemory(napi_env env, napi_value exports) {
  {
    std::lock_guard lock(tableLock);
    environments[env];
  }
  return napi_add_env_cleanup_hook(env, onEnvironmentEnd, env) == napi_ok &&
         defineFunction(env, exports, "memoryJoin", memoryJoin) &&
         defineFunction(env, exports, "memoryDomain", memoryDomain) &&
         defineFunction(env, exports, "segmentCreate", segmentCreate) &&
         defineFunction(env, exports, "segmentImport", segmentImport) &&
         defineFunction(env, exports, "segmentAdmit", segmentAdmit) &&
         defineFunction(env, exports, "segmentInfo", segmentInfo) &&
         defineFunction(env, exports, "segmentFind", segmentFind) &&
         defineFunction(env, exports, "segmentIds", segmentIds) &&
         defineFunction(env, exports, "setSegmentCompanion", setSegmentCompanion) &&
         defineFunction(env, exports, "segmentFd", segmentFd) &&
         defineFunction(env, exports, "segmentBuffer", segmentBuffer) &&
         defineFunction(env, exports, "segmentClose", segmentClose) &&
         defineFunction(env, exports, "segmentPhysical", segmentPhysical) &&
         defineFunction(env, exports, "statusWords", statusWords) &&
         defineFunction(env, exports, "accessMap", accessMap) &&
         defineFunction(env, exports, "livenessOpen", livenessOpen) &&
         defineFunction(env, exports, "livenessClose", livenessClose);
}

}  // namespace penstock
