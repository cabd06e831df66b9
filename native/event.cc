// Events and waiting for them: eventfd, timerfd, pidfd, futexes, blocking waits.
//
// Invariants:
// - No thread blocks for longer than a slice (wait.h).
// - A counter that was not made here (a peer may have sent anything) is checked to be an anonymous
//   inode and made non-blocking before it is read or written.

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

#include "check.h"
#include "descriptor.h"
#include "memory.h"
#include "room.h"
#include "wait.h"

namespace penstock {

namespace {

constexpr size_t kParkedMax = 64;

napi_value giveCounter(napi_env env, Room* room, int fd, const char* syscall) {
  if (fd < 0) return throwErrno(env, errno, syscall);
  napi_value result = giveDescriptor(env, fd);
  if (result != nullptr) room->counters.insert(fd);
  return result;
}

bool usableCounter(napi_env env, const Room* room, int fd) {
  if (room->counters.contains(fd)) return true;
  struct stat st;
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fstat(fd, &st) != 0) {
    throwErrno(env, errno, "fcntl");
    return false;
  }
  if ((st.st_mode & S_IFMT) != 0) {
    throwErrno(env, EINVAL, "eventfd");
    return false;
  }
  if ((flags & O_NONBLOCK) == 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    throwErrno(env, errno, "fcntl");
    return false;
  }
  return true;
}

napi_value drainCounter(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd) || !usableCounter(env, roomOf(args), fd)) return nullptr;
  uint64_t count = 0;
  ssize_t bytes;
  do {
    bytes = read(fd, &count, sizeof count);
  } while (bytes < 0 && errno == EINTR);
  if (bytes == sizeof count) return makeNumber(env, static_cast<double>(count));
  if (bytes < 0 && errno == EAGAIN) return makeNumber(env, 0);
  return throwErrno(env, bytes < 0 ? errno : EINVAL, "read");
}

napi_value eventfdCreate(napi_env env, napi_callback_info info) {
  Args args(env, info);
  return giveCounter(env, roomOf(args), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd");
}

napi_value eventfdSignal(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd) || !usableCounter(env, roomOf(args), fd)) return nullptr;
  const uint64_t one = 1;
  ssize_t bytes;
  do {
    bytes = write(fd, &one, sizeof one);
  } while (bytes < 0 && errno == EINTR);
  // EAGAIN: the counter is full, so whoever reads it is signalled already.
  if (bytes < 0 && errno != EAGAIN) return throwErrno(env, errno, "write");
  return makeUndefined(env);
}

napi_value timerfdCreate(napi_env env, napi_callback_info info) {
  Args args(env, info);
  const int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  return giveCounter(env, roomOf(args), fd, "timerfd_create");
}

napi_value timerfdSet(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  int64_t first, interval;
  if (!args.fd(0, "fd", &fd) || !args.integer(1, "nanoseconds", 0, kSafeInteger, &first) ||
      !args.integer(2, "intervalNanoseconds", 0, kSafeInteger, &interval)) {
    return nullptr;
  }
  const itimerspec setting = {.it_interval = toTimespec(interval), .it_value = toTimespec(first)};
  if (timerfd_settime(fd, 0, &setting, nullptr) != 0) {
    return throwErrno(env, errno, "timerfd_settime");
  }
  return makeUndefined(env);
}

napi_value pidfdOpen(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t pid;
  if (!args.integer(0, "pid", 1, INT_MAX, &pid)) return nullptr;
  const long fd = syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0u);
  return fd < 0 ? throwErrno(env, errno, "pidfd_open") : giveDescriptor(env, static_cast<int>(fd));
}

napi_value pidfdSignal(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int pidfd;
  int64_t signal;
  if (!args.fd(0, "pidfd", &pidfd) || !args.integer(1, "signal", 0, 64, &signal)) return nullptr;
  if (syscall(SYS_pidfd_send_signal, pidfd, static_cast<int>(signal), nullptr, 0u) != 0) {
    return throwErrno(env, errno, "pidfd_send_signal");
  }
  return makeUndefined(env);
}

napi_value park(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t timeoutUs;
  void* data;
  size_t bytes;
  if (!args.integer(1, "timeoutUs", -1, kTimeoutUsMax, &timeoutUs) ||
      !args.view(0, "fds", sizeof(int32_t), &data, &bytes)) {
    return nullptr;
  }
  const size_t count = bytes / sizeof(int32_t);
  if (count > kParkedMax) {
    return throwRange(env, "fds must have at most %zu entries, not %zu", kParkedMax, count);
  }
  pollfd polled[kParkedMax];
  bool any = false;
  for (size_t i = 0; i < count; i++) {
    // poll(2) passes over negative descriptors, and so do we.
    polled[i] = {.fd = static_cast<int32_t*>(data)[i], .events = POLLIN, .revents = 0};
    any = any || polled[i].fd >= 0;
  }
  if (!any && timeoutUs < 0) {
    return throwRange(env, "timeoutUs must not be -1 when there is no descriptor to wait for");
  }
  const Deadline deadline(timeoutUs);
  for (;;) {
    bool last;
    const timespec slice = deadline.slice(&last);
    const int ready = ppoll(polled, count, &slice, nullptr);
    if (ready < 0 && errno != EINTR) return throwErrno(env, errno, "ppoll");
    if (ready > 0) {
      for (size_t i = 0; i < count; i++) {
        if ((polled[i].revents & POLLNVAL) != 0) return throwErrno(env, EBADF, "ppoll");
        if (polled[i].revents != 0) return makeNumber(env, static_cast<double>(i));
      }
    }
    if (ready == 0 && last) return makeNumber(env, -1);
    if (!mayGoOn(env, roomOf(args))) return nullptr;
  }
}

// The futex word at `address`, or nullptr with an exception pending. Read access is enough for both
// calls: a waiter may sleep on a word that only its peer writes. The lock is not held over the call
// that follows: the kernel reads the word itself, and answers EFAULT where there is none any more.
void* futexWord(napi_env env, int64_t address) {
  SegmentLock lock;
  void* word = address % 4 == 0 ? resolve(static_cast<uint64_t>(address), 4, false) : nullptr;
  if (word == nullptr) {
    throwRange(env, "address 0x%llx is not an aligned word of a live segment",
               static_cast<unsigned long long>(address));
  }
  return word;
}

// futex(2) on a word that other processes may map too. A device's memory (a region in a guest) has
// no key for that, and EFAULT says so: there it is a futex of this process alone, since whoever
// else writes the word could not wake anybody here.
long futexCall(void* word, int operation, uint32_t value, const timespec* timeout) {
  const long result = syscall(SYS_futex, word, operation, value, timeout, nullptr, 0);
  if (result >= 0 || errno != EFAULT) return result;
  return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, timeout, nullptr, 0);
}

napi_value futexWait(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t address, timeoutUs;
  uint32_t expected;
  if (!args.integer(0, "address", 0, kSpaceBytes - 1, &address) ||
      !args.u32(1, "expected", &expected) ||
      !args.integer(2, "timeoutUs", -1, kTimeoutUsMax, &timeoutUs)) {
    return nullptr;
  }
  const Deadline deadline(timeoutUs);
  for (;;) {
    // Looked up anew each time: the segment may have been closed while this thread slept.
    void* word = futexWord(env, address);
    if (word == nullptr) return nullptr;
    bool last;
    const timespec slice = deadline.slice(&last);
    if (futexCall(word, FUTEX_WAIT, expected, &slice) == 0) return makeNumber(env, 0);
    if (errno == EAGAIN) return makeNumber(env, 1);
    if (errno == ETIMEDOUT && last) return makeNumber(env, 2);
    if (errno != EINTR && errno != ETIMEDOUT) return throwErrno(env, errno, "futex");
    if (!mayGoOn(env, roomOf(args))) return nullptr;
  }
}

napi_value futexWake(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t address, count;
  if (!args.integer(0, "address", 0, kSpaceBytes - 1, &address) ||
      !args.integer(1, "count", 0, INT_MAX, &count)) {
    return nullptr;
  }
  void* word = futexWord(env, address);
  if (word == nullptr) return nullptr;
  if (count == 0) return makeNumber(env, 0);  // the kernel would wake one
  const long woken = futexCall(word, FUTEX_WAKE, static_cast<uint32_t>(count), nullptr);
  return woken < 0 ? throwErrno(env, errno, "futex") : makeNumber(env, static_cast<double>(woken));
}

}  // namespace

bool initEvent(napi_env env, napi_value exports) {
  Room* room = openRoom(env);
  if (room == nullptr) return false;
  constexpr RoomFunction functions[] = {
      {"eventfdCreate", eventfdCreate},
      {"eventfdSignal", eventfdSignal},
      {"eventfdDrain", drainCounter},
      {"timerfdCreate", timerfdCreate},
      {"timerfdSet", timerfdSet},
      {"timerfdDrain", drainCounter},
      {"pidfdOpen", pidfdOpen},
      {"pidfdSignal", pidfdSignal},
      {"park", park},
      {"futexWait", futexWait},
      {"futexWake", futexWake},
  };
  return defineInRoom(env, exports, room, functions) && initFile(env, exports, room) &&
         initWatch(env, exports, room) && initStream(env, exports, room) &&
         initBlocking(env, exports, room);
}

}  // namespace penstock
