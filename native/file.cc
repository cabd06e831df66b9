// Files and block devices by descriptor: open, close, sizes, alignment, allocation.

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/stat.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <string>

#include "check.h"
#include "descriptor.h"
#include "memory.h"
#include "room.h"

namespace penstock {

namespace {

napi_value fileOpen(napi_env env, napi_callback_info info) {
  Args args(env, info);
  std::string path;
  int64_t flags, mode;
  if (!args.string(0, "path", PATH_MAX - 1, &path) ||
      !args.integer(1, "flags", 0, INT_MAX, &flags) || !args.integer(2, "mode", 0, 07777, &mode)) {
    return nullptr;
  }
  if (path.empty() || path.find('\0') != std::string::npos) {
    return throwRange(env, "path must not be empty or contain a NUL byte");
  }
  int fd;
  do {
    fd = open(path.c_str(), static_cast<int>(flags) | O_CLOEXEC, static_cast<mode_t>(mode));
  } while (fd < 0 && errno == EINTR);
  return fd < 0 ? throwErrno(env, errno, "open") : giveDescriptor(env, fd);
}

napi_value fileClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Room* room = roomOf(args);
  int fd;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  if (room->watchOfFd.contains(fd)) return throwErrno(env, EBUSY, "close");
  if (!disownDescriptor(env, fd)) return throwErrno(env, EBADF, "close");
  room->counters.erase(fd);
  // EINTR on Linux means closed.
  if (close(fd) != 0 && errno != EINTR) return throwErrno(env, errno, "close");
  return makeUndefined(env);
}

napi_value fileDuplicate(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  return copy < 0 ? throwErrno(env, errno, "fcntl") : giveDescriptor(env, copy);
}

napi_value fileStat(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  // The fields and the bit of STATX_DIOALIGN (Linux 6.1) by number: older headers lack the names.
  constexpr unsigned kDirectAlign = 0x2000;
  constexpr size_t kDirectAlignOffset = 0x98;
  struct statx st = {};
  static_assert(sizeof st == 256);
  if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | kDirectAlign, &st) != 0) {
    return throwErrno(env, errno, "statx");
  }
  uint32_t align[2] = {0, 0};
  if ((st.stx_mask & kDirectAlign) != 0) {
    memcpy(align, reinterpret_cast<const char*>(&st) + kDirectAlignOffset, sizeof align);
  }
  const double values[] = {
      static_cast<double>(st.stx_mode),
      static_cast<double>(st.stx_size),
      static_cast<double>(st.stx_blksize),
      static_cast<double>(align[0]),
      static_cast<double>(align[1]),
      static_cast<double>(makedev(st.stx_dev_major, st.stx_dev_minor)),
      static_cast<double>(st.stx_ino),
  };
  return makeNumbers(env, values, sizeof values / sizeof values[0]);
}

// A number from a block device's queue directory; a partition's is its disk's. 0 where unknown.
double queueLimit(dev_t device, const char* name) {
  for (const char* parent : {"", "../"}) {
    char path[128];
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%squeue/%s", major(device), minor(device),
             parent, name);
    FILE* file = fopen(path, "re");
    if (file == nullptr) continue;
    unsigned long long value = 0;
    const bool read = fscanf(file, "%llu", &value) == 1;
    fclose(file);
    return read ? static_cast<double>(value) : 0;
  }
  return 0;
}

napi_value blockGeometry(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  struct stat st;
  if (fstat(fd, &st) != 0) return throwErrno(env, errno, "fstat");
  if (!S_ISBLK(st.st_mode)) return throwErrno(env, ENOTBLK, "blockGeometry");
  uint64_t bytes = 0;
  int logical = 0;
  unsigned physical = 0;
  if (ioctl(fd, BLKGETSIZE64, &bytes) != 0 || ioctl(fd, BLKSSZGET, &logical) != 0 ||
      ioctl(fd, BLKPBSZGET, &physical) != 0) {
    return throwErrno(env, errno, "ioctl");
  }
  // Some devices state a granularity though they cannot discard.
  const bool discards = queueLimit(st.st_rdev, "discard_max_bytes") > 0;
  const double values[] = {
      static_cast<double>(bytes),
      static_cast<double>(logical),
      static_cast<double>(physical),
      discards ? queueLimit(st.st_rdev, "discard_granularity") : 0,
      queueLimit(st.st_rdev, "max_sectors_kb") * 1024,
  };
  return makeNumbers(env, values, sizeof values / sizeof values[0]);
}

// Reads or writes at an offset, what is a plain buffer's worth: config space, trapped registers.
template <typename Transfer>
napi_value transferAt(napi_env env, napi_callback_info info, const char* call, Transfer transfer) {
  Args args(env, info);
  int fd;
  int64_t offset;
  void* data;
  size_t bytes;
  if (!args.fd(0, "fd", &fd) || !args.integer(1, "offset", 0, kSafeInteger, &offset) ||
      !args.view(2, "data", 0, &data, &bytes)) {
    return nullptr;
  }
  if (!ownsDescriptor(env, fd) && !ownsDevice(env, fd)) return throwErrno(env, EBADF, call);
  ssize_t done;
  do {
    done = transfer(fd, data, bytes, offset);
  } while (done < 0 && errno == EINTR);
  return done < 0 ? throwErrno(env, errno, call) : makeNumber(env, static_cast<double>(done));
}

napi_value filePread(napi_env env, napi_callback_info info) {
  return transferAt(env, info, "pread", pread);
}

napi_value filePwrite(napi_env env, napi_callback_info info) {
  return transferAt(env, info, "pwrite", pwrite);
}

napi_value fileAllocate(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  int64_t mode, offset, bytes;
  if (!args.fd(0, "fd", &fd) || !args.integer(1, "mode", 0, INT_MAX, &mode) ||
      !args.integer(2, "offset", 0, kSafeInteger, &offset) ||
      !args.integer(3, "bytes", 1, kSafeInteger, &bytes)) {
    return nullptr;
  }
  int result;
  do {
    result = fallocate(fd, static_cast<int>(mode), offset, bytes);
  } while (result != 0 && errno == EINTR);
  return result != 0 ? throwErrno(env, errno, "fallocate") : makeUndefined(env);
}

napi_value fileTruncate(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  int64_t bytes;
  if (!args.fd(0, "fd", &fd) || !args.integer(1, "bytes", 0, kSafeInteger, &bytes)) return nullptr;
  int result;
  do {
    result = ftruncate(fd, bytes);
  } while (result != 0 && errno == EINTR);
  return result != 0 ? throwErrno(env, errno, "ftruncate") : makeUndefined(env);
}

napi_value fileLock(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  bool locked;
  if (!args.fd(0, "fd", &fd) || !args.boolean(1, "locked", &locked)) return nullptr;
  struct flock lock = {};
  lock.l_type = locked ? F_WRLCK : F_UNLCK;
  lock.l_whence = SEEK_SET;
  return fcntl(fd, F_OFD_SETLK, &lock) != 0 ? throwErrno(env, errno, "fcntl(F_OFD_SETLK)")
                                            : makeUndefined(env);
}

}  // namespace

bool initFile(napi_env env, napi_value exports, Room* room) {
  constexpr RoomFunction functions[] = {
      {"fileOpen", fileOpen},
      {"fileClose", fileClose},
      {"fileDuplicate", fileDuplicate},
      {"fileStat", fileStat},
      {"blockGeometry", blockGeometry},
      {"filePread", filePread},
      {"filePwrite", filePwrite},
      {"fileAllocate", fileAllocate},
      {"fileTruncate", fileTruncate},
      {"fileLock", fileLock},
  };
  return defineInRoom(env, exports, room, functions);
}

}  // namespace penstock
