// Descriptors and waiting: files, eventfd, timerfd, pidfd, blocking waits, watches in Node's loop.
//
// Invariants:
// - All state is per environment (`Room`), handed to each function as its data, so nothing here
//   needs a lock. It ends in an asynchronous cleanup hook, when libuv has let go of the last watch.
// - A watch polls a duplicate of its descriptor: another thread may close the original at any time
//   and neither libuv's tables nor a reused number suffer from it.
// - No thread blocks for longer than a slice. A thread in the kernel cannot be terminated, and
//   worker.terminate() and process exit join it; between slices an empty JavaScript function is
//   called, whose stack check notices termination.
// - A counter that was not made here (a peer may have sent anything) is checked to be an anonymous
//   inode and made non-blocking before it is read or written.

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/stat.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include <uv.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "check.h"
#include "descriptor.h"
#include "memory.h"

namespace penstock {

namespace {

constexpr int64_t kSafeInteger = 9007199254740991;
constexpr int64_t kSliceNs = 200'000'000;
constexpr size_t kParkedMax = 64;

struct Room;

struct Watch {
  uv_poll_t poll;
  Room* room;
  uint32_t id;
  int fd;      // the caller's
  int polled;  // the duplicate that libuv polls
  napi_ref onReadable;
  napi_async_context context;
  bool active;
};

struct Room {
  napi_env env;
  uv_loop_t* loop;
  napi_ref emptyFunction;
  napi_async_cleanup_hook_handle cleanup;
  std::unordered_map<uint32_t, Watch*> watches;  // open ones
  std::unordered_map<int, uint32_t> watchOfFd;
  std::unordered_set<int> counters;  // eventfds and timerfds made in this environment
  uint32_t nextWatch = 1;
  uint32_t handles = 0;  // uv handles not yet closed, those of closed watches included
  bool ending = false;
};

Room* roomOf(const Args& args) { return static_cast<Room*>(args.data()); }

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

napi_value makeNumbers(napi_env env, const double* values, size_t count) {
  napi_value array;
  if (napi_create_array_with_length(env, count, &array) != napi_ok) return nullptr;
  for (size_t i = 0; i < count; i++) {
    napi_value number = makeNumber(env, values[i]);
    if (number == nullptr || napi_set_element(env, array, i, number) != napi_ok) return nullptr;
  }
  return array;
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

timespec toTimespec(int64_t ns) {
  return {.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
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

int64_t monotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

// The time a blocking call may still wait, cut into slices.
class Deadline {
 public:
  explicit Deadline(int64_t timeoutUs)
      : limited_(timeoutUs >= 0), endNs_(limited_ ? monotonicNs() + timeoutUs * 1000 : 0) {}

  // The next slice; `last` when the deadline lies in it.
  timespec slice(bool* last) const {
    const int64_t left = limited_ ? std::max<int64_t>(endNs_ - monotonicNs(), 0) : INT64_MAX;
    *last = left <= kSliceNs;
    return toTimespec(std::min(left, kSliceNs));
  }

 private:
  bool limited_;
  int64_t endNs_;
};

// False, with the termination pending, when this environment is being stopped.
bool mayGoOn(napi_env env, const Room* room) {
  napi_value function, receiver;
  return napi_get_reference_value(env, room->emptyFunction, &function) == napi_ok &&
         napi_get_undefined(env, &receiver) == napi_ok &&
         napi_call_function(env, receiver, function, 0, nullptr, nullptr) == napi_ok;
}

// A hundred years, so that arithmetic in nanoseconds cannot overflow.
constexpr int64_t kTimeoutUsMax = 3'155'760'000'000'000;

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
    if (syscall(SYS_futex, word, FUTEX_WAIT, expected, &slice, nullptr, 0) == 0) {
      return makeNumber(env, 0);
    }
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
  const long woken = syscall(SYS_futex, word, FUTEX_WAKE, static_cast<int>(count), nullptr,
                             nullptr, 0);
  return woken < 0 ? throwErrno(env, errno, "futex") : makeNumber(env, static_cast<double>(woken));
}

void endRoom(Room* room) {
  napi_async_cleanup_hook_handle cleanup = room->cleanup;
  delete room;
  napi_remove_async_cleanup_hook(cleanup);
}

void onWatchClosed(uv_handle_t* handle) {
  Watch* watch = static_cast<Watch*>(handle->data);
  Room* room = watch->room;
  delete watch;
  room->handles--;
  if (room->ending && room->handles == 0) endRoom(room);
}

// Takes the watch out of the room's tables and begins its end; libuv frees it by onWatchClosed.
void beginClose(Watch* watch) {
  Room* room = watch->room;
  room->watches.erase(watch->id);
  room->watchOfFd.erase(watch->fd);
  watch->active = false;
  napi_delete_reference(room->env, watch->onReadable);
  napi_async_destroy(room->env, watch->context);
  uv_close(reinterpret_cast<uv_handle_t*>(&watch->poll), onWatchClosed);
  // libuv is out of epoll at once, though it needs the handle for longer.
  close(watch->polled);
}

void callBack(Watch* watch) {
  const napi_env env = watch->room->env;
  napi_handle_scope scope;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  napi_value function, receiver;
  if (napi_get_reference_value(env, watch->onReadable, &function) == napi_ok &&
      napi_get_global(env, &receiver) == napi_ok &&
      napi_make_callback(env, watch->context, receiver, function, 0, nullptr, nullptr) ==
          napi_pending_exception) {
    napi_value exception;
    bool pending = false;
    if (napi_is_exception_pending(env, &pending) == napi_ok && pending &&
        napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
      napi_fatal_exception(env, exception);
    }
  }
  napi_close_handle_scope(env, scope);
}

void onPoll(uv_poll_t* poll, int status, int) {
  Watch* watch = static_cast<Watch*>(poll->data);
  callBack(watch);
  // libuv stops a handle when it reports an error (POLLERR). A level-triggered watch goes on until
  // its owner, who has just been told and will see the error when reading, stops or closes it.
  if (status < 0 && watch->active) uv_poll_start(poll, UV_READABLE, onPoll);
}

napi_value watchOpen(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Room* room = roomOf(args);
  int fd;
  if (!args.fd(0, "fd", &fd) || !args.function(1, "onReadable")) return nullptr;
  if (room->ending) return throwErrno(env, ECANCELED, "watch");
  if (room->watchOfFd.contains(fd)) return throwErrno(env, EEXIST, "watch");
  const int polled = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (polled < 0) return throwErrno(env, errno, "fcntl");
  auto* watch = new Watch{.poll = {}, .room = room, .id = room->nextWatch, .fd = fd,
                          .polled = polled, .onReadable = nullptr, .context = nullptr,
                          .active = false};
  napi_value name;
  if (napi_create_reference(env, args.at(1), 1, &watch->onReadable) != napi_ok ||
      napi_create_string_utf8(env, "PENSTOCK_WATCH", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_async_init(env, nullptr, name, &watch->context) != napi_ok) {
    if (watch->onReadable != nullptr) napi_delete_reference(env, watch->onReadable);
    close(polled);
    delete watch;
    return throwErrno(env, ENOMEM, "watch");
  }
  // This also makes the open file non-blocking.
  const int error = uv_poll_init(room->loop, &watch->poll, polled);
  if (error != 0) {
    napi_delete_reference(env, watch->onReadable);
    napi_async_destroy(env, watch->context);
    close(polled);
    delete watch;
    return throwErrno(env, -error, "epoll_ctl");
  }
  watch->poll.data = watch;
  uv_unref(reinterpret_cast<uv_handle_t*>(&watch->poll));
  room->handles++;
  room->nextWatch++;
  room->watches.emplace(watch->id, watch);
  room->watchOfFd.emplace(fd, watch->id);
  return makeNumber(env, watch->id);
}

Watch* watchAt(const Args& args) {
  int64_t id;
  if (!args.integer(0, "watch", 1, UINT32_MAX, &id)) return nullptr;
  const auto& watches = roomOf(args)->watches;
  const auto found = watches.find(static_cast<uint32_t>(id));
  if (found != watches.end()) return found->second;
  throwRange(args.env(), "watch %lld is not open", static_cast<long long>(id));
  return nullptr;
}

napi_value watchSet(napi_env env, napi_callback_info info) {
  Args args(env, info);
  bool active;
  if (!args.boolean(1, "active", &active)) return nullptr;
  Watch* watch = watchAt(args);
  if (watch == nullptr) return nullptr;
  if (active == watch->active) return makeUndefined(env);
  auto* handle = reinterpret_cast<uv_handle_t*>(&watch->poll);
  if (active) {
    const int error = uv_poll_start(&watch->poll, UV_READABLE, onPoll);
    if (error != 0) return throwErrno(env, -error, "epoll_ctl");
    uv_ref(handle);
  } else {
    uv_poll_stop(&watch->poll);
    uv_unref(handle);
  }
  watch->active = active;
  return makeUndefined(env);
}

napi_value watchClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Watch* watch = watchAt(args);
  if (watch == nullptr) return nullptr;
  beginClose(watch);
  return makeUndefined(env);
}

void onEnvironmentEnd(napi_async_cleanup_hook_handle, void* data) {
  Room* room = static_cast<Room*>(data);
  room->ending = true;
  napi_handle_scope scope;
  const bool scoped = napi_open_handle_scope(room->env, &scope) == napi_ok;
  napi_delete_reference(room->env, room->emptyFunction);
  while (!room->watches.empty()) beginClose(room->watches.begin()->second);
  if (scoped) napi_close_handle_scope(room->env, scope);
  if (room->handles == 0) endRoom(room);
}

Room* openRoom(napi_env env) {
  napi_value source, function;
  auto* room = new Room{.env = env, .loop = nullptr, .emptyFunction = nullptr, .cleanup = nullptr,
                        .watches = {}, .watchOfFd = {}, .counters = {}};
  // A script's function, because only bytecode has the stack check that mayGoOn needs.
  if (napi_get_uv_event_loop(env, &room->loop) == napi_ok &&
      napi_create_string_utf8(env, "(function () {})", NAPI_AUTO_LENGTH, &source) == napi_ok &&
      napi_run_script(env, source, &function) == napi_ok &&
      napi_create_reference(env, function, 1, &room->emptyFunction) == napi_ok &&
      napi_add_async_cleanup_hook(env, onEnvironmentEnd, room, &room->cleanup) == napi_ok) {
    return room;
  }
  if (room->emptyFunction != nullptr) napi_delete_reference(env, room->emptyFunction);
  delete room;
  return nullptr;
}

}  // namespace

bool initEvent(napi_env env, napi_value exports) {
  Room* room = openRoom(env);
  if (room == nullptr) return false;
  const struct {
    const char* name;
    napi_callback callback;
  } functions[] = {
      {"fileOpen", fileOpen},           {"fileClose", fileClose},
      {"fileDuplicate", fileDuplicate}, {"fileStat", fileStat},
      {"blockGeometry", blockGeometry}, {"fileAllocate", fileAllocate},
      {"fileTruncate", fileTruncate},   {"eventfdCreate", eventfdCreate},
      {"eventfdSignal", eventfdSignal}, {"eventfdDrain", drainCounter},
      {"timerfdCreate", timerfdCreate}, {"timerfdSet", timerfdSet},
      {"timerfdDrain", drainCounter},   {"pidfdOpen", pidfdOpen},
      {"pidfdSignal", pidfdSignal},     {"park", park},
      {"futexWait", futexWait},         {"futexWake", futexWake},
      {"watchOpen", watchOpen},         {"watchSet", watchSet},
      {"watchClose", watchClose},
  };
  for (const auto& entry : functions) {
    napi_value function;
    if (napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, entry.callback, room, &function) !=
            napi_ok ||
        napi_set_named_property(env, exports, entry.name, function) != napi_ok) {
      return false;
    }
  }
  return true;
}

}  // namespace penstock
