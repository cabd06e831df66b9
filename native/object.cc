// Memory objects: memfds that segments are made of, and those that are made here for somebody else
// to map (a guest's region: this process never has it writable).

#include "object.h"

#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#include <cerrno>

#include "descriptor.h"

namespace penstock {

namespace {

napi_value objectCreate(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t bytes, pageBytes;
  if (!args.integer(0, "bytes", kGranuleBytes, kMaxSegmentBytes, &bytes)) return nullptr;
  if (!args.integer(1, "pageBytes", 4096, 1 << 30, &pageBytes)) return nullptr;
  if (!validPageBytes(pageBytes)) return throwRange(env, "pageBytes must be 4096, 2 MiB or 1 GiB");
  if (bytes % static_cast<int64_t>(kGranuleBytes) != 0 || bytes % pageBytes != 0) {
    return throwRange(env, "bytes must be a multiple of 2 MiB and of pageBytes");
  }
  Failure failure;
  const int fd = makeObject(bytes, pageBytes, true, &failure);
  return fd < 0 ? throwErrno(env, failure.error, failure.call) : giveDescriptor(env, fd);
}

napi_value objectSeal(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  if (!ownsDescriptor(env, fd)) return throwErrno(env, EBADF, "objectSeal");
  if (fcntl(fd, F_ADD_SEALS, kSharedSeals) != 0) {
    return throwErrno(env, errno, "fcntl(F_ADD_SEALS)");
  }
  return makeUndefined(env);
}

}  // namespace

int makeObject(int64_t bytes, int64_t pageBytes, bool whole, Failure* failure) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (pageBytes == (2 << 20)) flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  if (pageBytes == (1 << 30)) flags |= MFD_HUGETLB | MFD_HUGE_1GB;
  Descriptor fd(memfd_create("penstock", flags));
  if (fd.get() < 0) {
    *failure = {"memfd_create", errno};
  } else if (ftruncate(fd.get(), bytes) != 0) {
    *failure = {"ftruncate", errno};
  } else if ((pageBytes != 4096 || whole) && fallocate(fd.get(), 0, 0, bytes) != 0) {
    // Taken now: a hugepage that cannot be had later would be a SIGBUS, and a peer admits shared
    // memory without holes only.
    *failure = {"fallocate", errno == ENOSPC ? ENOMEM : errno};
  } else {
    return fd.give();
  }
  return -1;
}

uint64_t objectPageBytes(int fd) {
  struct statfs info;
  if (fstatfs(fd, &info) != 0) return 0;
  return info.f_type == HUGETLBFS_MAGIC ? static_cast<uint64_t>(info.f_bsize) : 4096;
}

bool initObject(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "objectCreate", objectCreate) &&
         defineFunction(env, exports, "objectSeal", objectSeal);
}

}  // namespace penstock
