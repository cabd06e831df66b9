// New segments: memory of our own, foreign memory imported, a peer's memory admitted (sealed) or
// attached (not sealed: what protects it is said at checkAttachment). The rules they keep stand in
// registry.cc.
//
// Every segment starts at a granule (2 MiB) and fills whole granules; where the backing object is
// shorter (imported memory) anonymous pages fill the last granule. What may block or take long
// (making the object, allocating its pages) happens before the locks are taken.
//
// Processes that map the same hugepages of 2 MiB in the same way share the kernel's page tables of
// every whole, aligned gibibyte (docs/page-tables.md). So a segment that large begins at one.

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "object.h"
#include "registry.h"

namespace penstock {

namespace {

constexpr uint64_t kGibibyte = 1ull << 30;

// Where the segment is to lie in the process's slot: an address, or 0. Under tableLock.
uint64_t findPlace(uint64_t bytes, uint64_t pageBytes) {
  const bool large = pageBytes == kGranuleBytes && bytes >= kGibibyte;
  const uint64_t place = large ? findRange(bytes, kGibibyte) : 0;
  return place != 0 ? place : findRange(bytes, std::max(kGranuleBytes, pageBytes));
}

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
  Descriptor fd(makeObject(bytes, pageBytes, kind == kShared, &failure));
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

// Whether [address, address + bytes) lies in one slot.
bool inOneSlot(uint64_t address, uint64_t bytes) {
  return (address + bytes - 1) / kSlotBytes == address / kSlotBytes;
}

// Whether memory may be imported at this address; the failed check where it may not. Under
// tableLock.
Failure checkPlace(uint64_t address, uint64_t bytes, uint64_t align) {
  if (address % align != 0) return {"segmentImport(alignment)", EINVAL};
  if (address / kSlotBytes != registry.domain || !inOneSlot(address, bytes)) {
    return {"segmentImport(slot)", EINVAL};
  }
  return rangeFree(address, bytes) ? Failure{} : Failure{"segmentImport", EEXIST};
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
  int64_t wanted = 0;  // the lowest free address
  if (!args.absent(4) &&
      !args.integer(4, "address", kSlotBytes, kSpaceBytes - kGranuleBytes, &wanted)) {
    return nullptr;
  }
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
    const uint64_t align = std::max<uint64_t>(kGranuleBytes, pageBytes);
    if (wanted != 0) failure = checkPlace(wanted, spec.bytes, align);
    if (failure.call != nullptr) {
      // Nothing is changed.
    } else if (int error = reserveSpace()) {
      failure = {"mmap", error};
    } else {
      const uint64_t address = wanted != 0 ? wanted : findPlace(spec.bytes, pageBytes);
      id = mapSegment(spec, address, offset, &fd, &none, "segmentImport", &failure);
    }
  }
  return id != 0 ? makeNumber(env, id) : throwErrno(env, failure.error, failure.call);
}

// Maps a peer's memory, which was checked, read-only at its address in the peer's slot.
napi_value mapAdmitted(napi_env env, Descriptor* fd, uint64_t address, uint64_t bytes,
                       uint64_t pageBytes, const char* caller, const char* ownSlot) {
  Descriptor none(-1);
  Mapping spec;
  spec.kind = kAdmitted;
  spec.bytes = spec.backedBytes = bytes;
  spec.pageBytes = pageBytes;
  spec.owner = env;
  Failure failure;
  uint32_t id = 0;
  {
    Exclusive lock;
    if (address / kSlotBytes == registry.domain) {
      failure = {ownSlot, EINVAL};
    } else if (int error = reserveSpace()) {
      failure = {"mmap", error};
    } else if (!rangeFree(address, bytes)) {
      failure = {caller, EEXIST};
    } else {
      id = mapSegment(spec, address, 0, fd, &none, caller, &failure);
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
  if (!inOneSlot(address, bytes)) return {"segmentAdmit(slot)", EINVAL};
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
  Descriptor fd(fcntl(source, F_DUPFD_CLOEXEC, 0));
  if (fd.get() < 0) return throwErrno(env, errno, "fcntl(F_DUPFD)");
  Failure failure = checkAdmission(fd.get(), address, bytes, pageBytes);
  if (failure.call != nullptr) return throwErrno(env, failure.error, failure.call);
  return mapAdmitted(env, &fd, address, bytes, pageBytes, "segmentAdmit",
                     "segmentAdmit(own slot)");
}

// Whether memory whose owner's writes nothing seals (QEMU has it mapped, or it is a PCI resource)
// may be attached as claimed; the failed check where it may not.
Failure checkAttachment(int fd, int64_t address, int64_t bytes, int64_t pageBytes) {
  const int64_t align = std::max<int64_t>(kGranuleBytes, pageBytes);
  if (address % align != 0 || bytes % align != 0) return {"segmentAttach(alignment)", EINVAL};
  if (!inOneSlot(address, bytes)) return {"segmentAttach(slot)", EINVAL};
  // No mprotect makes a mapping of a read-only descriptor writable.
  if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY) return {"segmentAttach(access mode)", EPERM};
  struct stat facts;
  if (fstat(fd, &facts) != 0) return {"fstat", errno};
  // A PCI resource in sysfs is a regular file too, and of the size of its BAR.
  if (!S_ISREG(facts.st_mode)) return {"segmentAttach(object)", EINVAL};
  if (bytes > facts.st_size) return {"segmentAttach(size)", EOVERFLOW};
  return {};
}

napi_value segmentAttach(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int source;
  int64_t address, bytes;
  if (!args.fd(0, "fd", &source)) return nullptr;
  if (!args.integer(1, "address", kSlotBytes, kSpaceBytes - kGranuleBytes, &address)) {
    return nullptr;
  }
  if (!args.integer(2, "bytes", kGranuleBytes, kMaxSegmentBytes, &bytes)) return nullptr;
  Descriptor fd(fcntl(source, F_DUPFD_CLOEXEC, 0));
  if (fd.get() < 0) return throwErrno(env, errno, "fcntl(F_DUPFD)");
  const uint64_t pageBytes = objectPageBytes(fd.get());
  if (pageBytes == 0) return throwErrno(env, errno, "fstatfs");
  Failure failure = checkAttachment(fd.get(), address, bytes, static_cast<int64_t>(pageBytes));
  if (failure.call != nullptr) return throwErrno(env, failure.error, failure.call);
  return mapAdmitted(env, &fd, address, bytes, pageBytes, "segmentAttach",
                     "segmentAttach(own slot)");
}

}  // namespace

bool initSegment(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "segmentCreate", segmentCreate) &&
         defineFunction(env, exports, "segmentImport", segmentImport) &&
         defineFunction(env, exports, "segmentAdmit", segmentAdmit) &&
         defineFunction(env, exports, "segmentAttach", segmentAttach);
}

}  // namespace penstock
