// New segments: memory of our own, foreign memory imported, a peer's memory admitted. The rules
// they keep stand in registry.cc.
//
// Every segment starts at a granule (2 MiB) and fills whole granules; where the backing object is
// shorter (imported memory) anonymous pages fill the last granule. What may block or take long
// (making the object, allocating its pages) happens before the locks are taken.
//
// Processes that map the same hugepages of 2 MiB in the same way share the kernel's page tables of
// every whole, aligned gibibyte (docs/page-tables.md). So a segment that large begins at one.

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "registry.h"

namespace penstock {

namespace {

constexpr uint64_t kGibibyte = 1ull << 30;
constexpr uint64_t kMaxSegmentBytes = 2 * kGibibyte;
constexpr int kSharedSeals = F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;

// Where the segment is to lie in the process's slot: an address, or 0. Under tableLock.
uint64_t findPlace(uint64_t bytes, uint64_t pageBytes) {
  const bool large = pageBytes == kGranuleBytes && bytes >= kGibibyte;
  const uint64_t place = large ? findRange(bytes, kGibibyte) : 0;
  return place != 0 ? place : findRange(bytes, std::max(kGranuleBytes, pageBytes));
}

// A descriptor on its way into the registry; closed unless it got there.
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

// Maps `fd` at `address` and enters it. `spec` says what it is to be, but for place and
// descriptors. Under both locks. The id, or 0 with a failure.
uint32_t mapSegment(const Mapping& spec, uint64_t address, uint64_t offset, Descriptor* fd,
                    Descriptor* readOnlyFd, const char* caller, Failure* failure) {
  const uint32_t slot = address == 0 ? 0 : takeSlot();
  if (slot == 0) {
    *failure = {caller, address == 0 ? ENOMEM : EMFILE};
    return 0;
  }
  Mapping& mapping = registry.mappings[slot];
  const uint32_t id = mapping.id;
  const uint32_t generation = mapping.generation;
  mapping = spec;
  mapping.id = id;
  mapping.generation = generation;
  mapping.start = kBase + address;
  void* const start = reinterpret_cast<void*>(mapping.start);
  const int protection = spec.writable ? PROT_READ | PROT_WRITE : PROT_READ;
  bool mapped = spec.bytes == spec.backedBytes ||
                mmap(start, spec.bytes, protection,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
  mapped = mapped && mmap(start, spec.backedBytes, protection, MAP_SHARED | MAP_FIXED, fd->get(),
                          static_cast<off_t>(offset)) != MAP_FAILED;
  if (!mapped) {
    *failure = {"mmap", errno};
    abandonSegment(mapping);
    return 0;
  }
  // The seal comes after the owner has mapped the memory, or it could not write either.
  if (spec.kind == kShared && fcntl(fd->get(), F_ADD_SEALS, kSharedSeals) != 0) {
    *failure = {"fcntl(F_ADD_SEALS)", errno};
    abandonSegment(mapping);
    return 0;
  }
  mapping.fd = fd->give();
  mapping.readOnlyFd = readOnlyFd->give();
  publishSegment(slot);
  return id;
}

// A memfd of `bytes`; -1 with a failure.
int makeObject(int64_t bytes, int64_t pageBytes, Kind kind, Failure* failure) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (pageBytes == (2 << 20)) flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  if (pageBytes == (1 << 30)) flags |= MFD_HUGETLB | MFD_HUGE_1GB;
  Descriptor fd(memfd_create("penstock", flags));
  if (fd.get() < 0) {
    *failure = {"memfd_create", errno};
  } else if (ftruncate(fd.get(), bytes) != 0) {
    *failure = {"ftruncate", errno};
  } else if ((pageBytes != 4096 || kind == kShared) && fallocate(fd.get(), 0, 0, bytes) != 0) {
    // Taken now: a hugepage that cannot be had later would be a SIGBUS, and a peer admits shared
    // memory without holes only.
    *failure = {"fallocate", errno == ENOSPC ? ENOMEM : errno};
  } else {
    return fd.give();
  }
  return -1;
}

napi_value segmentCreate(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t bytes, pageBytes, kind;
  if (!args.integer(0, "bytes", kGranuleBytes, kMaxSegmentBytes, &bytes)) return nullptr;
  if (!args.integer(1, "pageBytes", 4096, 1 << 30, &pageBytes)) return nullptr;
  if (!args.integer(2, "kind", kPrivate, kDevice, &kind)) return nullptr;
  int64_t liveness = 0;
  if (!args.absent(3) && !args.integer(3, "liveness", 0, kLivenessWords - 1, &liveness)) {
    return nullptr;
  }
  if (!validPageBytes(pageBytes)) return throwRange(env, "pageBytes must be 4096, 2 MiB or 1 GiB");
  if (bytes % static_cast<int64_t>(kGranuleBytes) != 0 || bytes % pageBytes != 0) {
    return throwRange(env, "bytes must be a multiple of 2 MiB and of pageBytes");
  }
  Failure failure;
  Descriptor fd(makeObject(bytes, pageBytes, static_cast<Kind>(kind), &failure));
  if (fd.get() < 0) return throwErrno(env, failure.error, failure.call);
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd.get());
  Descriptor readOnlyFd(kind == kShared ? open(path, O_RDONLY | O_CLOEXEC) : -1);
  if (kind == kShared && readOnlyFd.get() < 0) return throwErrno(env, errno, "open");
  Mapping spec;
  spec.kind = static_cast<Kind>(kind);
  spec.writable = true;
  spec.bytes = spec.backedBytes = bytes;
  spec.pageBytes = pageBytes;
  uint32_t id = 0;
  {
    Exclusive lock;
    spec.owner = liveness == 0 ? env : livenessOwner(static_cast<uint32_t>(liveness));
    if (spec.owner == nullptr) {
      failure = {"segmentCreate", ESRCH};
    } else if (int error = reserveSpace()) {
      failure = {"mmap", error};
    } else {
      const uint64_t address = findPlace(bytes, pageBytes);
      id = mapSegment(spec, address, 0, &fd, &readOnlyFd, "segmentCreate", &failure);
    }
  }
  return id != 0 ? makeNumber(env, id) : throwErrno(env, failure.error, failure.call);
}

napi_value segmentImport(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int source;
  int64_t offset, bytes;
  Mapping spec;
  if (!args.fd(0, "fd", &source)) return nullptr;
  if (!args.integer(1, "offset", 0, INT64_MAX >> 1, &offset)) return nullptr;
  if (!args.integer(2, "bytes", 4096, kMaxSegmentBytes, &bytes)) return nullptr;
  if (!args.boolean(3, "writable", &spec.writable)) return nullptr;
  // Copied first, so that what is checked is what is mapped, whoever closes the number meanwhile.
  Descriptor fd(fcntl(source, F_DUPFD_CLOEXEC, 0)), none(-1);
  if (fd.get() < 0) return throwErrno(env, errno, "fcntl(F_DUPFD)");
  const uint64_t pageBytes = objectPageBytes(fd.get());
  if (pageBytes == 0) return throwErrno(env, errno, "fstatfs");
  const int64_t unit = static_cast<int64_t>(pageBytes);
  if (offset % unit != 0 || bytes % unit != 0) {
    return throwRange(env, "offset and bytes must be multiples of the object's page size, %llu",
                      static_cast<unsigned long long>(pageBytes));
  }
  struct stat facts;
  if (fstat(fd.get(), &facts) != 0) return throwErrno(env, errno, "fstat");
  if (S_ISREG(facts.st_mode) && offset + bytes > facts.st_size) {
    return throwErrno(env, EOVERFLOW, "segmentImport");
  }
  spec.kind = kImported;
  spec.bytes = roundUp(bytes, kGranuleBytes);
  spec.backedBytes = bytes;
  spec.pageBytes = pageBytes;
  spec.owner = env;
  Failure failure;
  uint32_t id = 0;
  {
    Exclusive lock;
    if (int error = reserveSpace()) {
      failure = {"mmap", error};
    } else {
      const uint64_t address = findPlace(spec.bytes, pageBytes);
      id = mapSegment(spec, address, offset, &fd, &none, "segmentImport", &failure);
    }
  }
  return id != 0 ? makeNumber(env, id) : throwErrno(env, failure.error, failure.call);
}

// Whether a peer's descriptor may be admitted as claimed; the failed check where it may not.
Failure checkAdmission(int fd, int64_t address, int64_t bytes, int64_t pageBytes) {
  const int64_t align = std::max<int64_t>(kGranuleBytes, pageBytes);
  if (!validPageBytes(pageBytes) || address % align != 0 || bytes % align != 0) {
    return {"segmentAdmit(alignment)", EINVAL};
  }
  const int64_t slotBytes = static_cast<int64_t>(kSlotBytes);
  if ((address + bytes - 1) / slotBytes != address / slotBytes) {
    return {"segmentAdmit(slot)", EINVAL};
  }
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSharedSeals) != kSharedSeals) return {"segmentAdmit(seals)", EPERM};
  if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY) return {"segmentAdmit(access mode)", EPERM};
  struct stat facts;
  if (fstat(fd, &facts) != 0) return {"fstat", errno};
  if (facts.st_size != bytes) return {"segmentAdmit(size)", EINVAL};
  if (facts.st_blocks * 512 < bytes) return {"segmentAdmit(holes)", EINVAL};
  if (objectPageBytes(fd) != static_cast<uint64_t>(pageBytes)) {
    return {"segmentAdmit(page size)", EINVAL};
  }
  return {};
}

napi_value segmentAdmit(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int source;
  int64_t address, bytes, pageBytes;
  if (!args.fd(0, "fd", &source)) return nullptr;
  if (!args.integer(1, "address", kSlotBytes, kSpaceBytes - kGranuleBytes, &address)) {
    return nullptr;
  }
  if (!args.integer(2, "bytes", kGranuleBytes, kMaxSegmentBytes, &bytes)) return nullptr;
  if (!args.integer(3, "pageBytes", 4096, 1 << 30, &pageBytes)) return nullptr;
  Descriptor fd(fcntl(source, F_DUPFD_CLOEXEC, 0)), none(-1);
  if (fd.get() < 0) return throwErrno(env, errno, "fcntl(F_DUPFD)");
  Failure failure = checkAdmission(fd.get(), address, bytes, pageBytes);
  if (failure.call != nullptr) return throwErrno(env, failure.error, failure.call);
  Mapping spec;
  spec.kind = kAdmitted;
  spec.bytes = spec.backedBytes = bytes;
  spec.pageBytes = pageBytes;
  spec.owner = env;
  uint32_t id = 0;
  {
    Exclusive lock;
    if (address / static_cast<int64_t>(kSlotBytes) == registry.domain) {
      failure = {"segmentAdmit(own slot)", EINVAL};
    } else if (int error = reserveSpace()) {
      failure = {"mmap", error};
    } else if (!rangeFree(address, bytes)) {
      failure = {"segmentAdmit", EEXIST};
    } else {
      id = mapSegment(spec, address, 0, &fd, &none, "segmentAdmit", &failure);
    }
  }
  return id != 0 ? makeNumber(env, id) : throwErrno(env, failure.error, failure.call);
}

}  // namespace

uint64_t objectPageBytes(int fd) {
  struct statfs info;
  if (fstatfs(fd, &info) != 0) return 0;
  return info.f_type == HUGETLBFS_MAGIC ? static_cast<uint64_t>(info.f_bsize) : 4096;
}

bool initSegment(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "segmentCreate", segmentCreate) &&
         defineFunction(env, exports, "segmentImport", segmentImport) &&
         defineFunction(env, exports, "segmentAdmit", segmentAdmit);
}

}  // namespace penstock
