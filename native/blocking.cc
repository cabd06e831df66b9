// Calls that may block for a minute (a reset or the last close of a device that went away), each on
// a detached thread: neither JavaScript nor libuv's pool waits for them, and no exit of the process
// does as far as the kernel lets it go.
//
// Invariants
// 1. The thread works on descriptors of its own (a duplicate, or one that left its environment's
//    ownership), so that no number is reused under it.
// 2. It touches nothing but its task, which it shares with the table below, and no static object:
//    those may be destroyed while it runs.
// 3. A result is told once, to the environment that started the call.

#include "blocking.h"

#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "check.h"
#include "descriptor.h"
#include "memory.h"
#include "registry.h"
#include "room.h"

namespace penstock {

namespace {

enum CallKind : int64_t { kReset, kClose };

constexpr size_t kStackBytes = 256 << 10;
constexpr auto kCloseBound = std::chrono::seconds(5);

struct Task {
  CallKind kind;
  int fd;
  bool device;
  int done;  // the thread's duplicate of the eventfd
  std::atomic<int> result{-1};
};

struct Entry {
  napi_env env;
  std::shared_ptr<Task> task;
};

std::map<int, Entry> tasks;  // by the environment's eventfd; under tableLock

void* runWork(void* data) {
  const std::unique_ptr<std::function<void()>> work(static_cast<std::function<void()>*>(data));
  (*work)();
  return nullptr;
}

// Runs it on a detached thread that takes no signals; an errno when there is none to be had.
int startDetached(std::function<void()> work) {
  auto held = std::make_unique<std::function<void()>>(std::move(work));
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  const int error = pthread_create(&thread, &attributes, runWork, held.get());
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  if (error == 0) held.release();
  return error;
}

// Clears the bus master bit in the command register, where the descriptor is a PCI device's.
void stopDma(int fd) {
  vfio_region_info region = {};
  region.argsz = sizeof region;
  region.index = VFIO_PCI_CONFIG_REGION_INDEX;
  if (ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &region) != 0) return;
  const off_t at = static_cast<off_t>(region.offset) + PCI_COMMAND;
  uint16_t command;
  if (pread(fd, &command, sizeof command, at) != sizeof command) return;
  command &= static_cast<uint16_t>(~PCI_COMMAND_MASTER);
  [[maybe_unused]] const ssize_t written = pwrite(fd, &command, sizeof command, at);
}

void runTask(const std::shared_ptr<Task>& task) {
  int error = 0;
  if (task->kind == kReset) {
    if (ioctl(task->fd, VFIO_DEVICE_RESET) != 0) error = errno;
    close(task->fd);
  } else {
    if (task->device) stopDma(task->fd);
    if (close(task->fd) != 0 && errno != EINTR) error = errno;
  }
  task->result.store(error);
  const uint64_t one = 1;
  // The counter cannot be full, and nobody could be told that it is.
  [[maybe_unused]] const ssize_t written = write(task->done, &one, sizeof one);
  close(task->done);
}

// The descriptor that the thread works on, taken from the environment; -1 with a failure.
int takeDescriptor(napi_env env, CallKind kind, int fd, Failure* failure) {
  if (kind == kClose) {
    if (disownDevice(env, fd) || disownDescriptor(env, fd)) return fd;
  } else if (ownsDevice(env, fd)) {
    const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0) *failure = {"fcntl(F_DUPFD)", errno};
    return copy;
  }
  *failure = {"blockingStart", EBADF};
  return -1;
}

napi_value blockingStart(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Room* room = roomOf(args);
  int64_t kind;
  int fd;
  if (!args.integer(0, "kind", kReset, kClose, &kind) || !args.fd(1, "fd", &fd)) return nullptr;
  if (kind == kClose && room->watchOfFd.contains(fd)) return throwErrno(env, EBUSY, "close");
  const int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event < 0) return throwErrno(env, errno, "eventfd");
  auto task = std::make_shared<Task>();
  task->kind = static_cast<CallKind>(kind);
  task->done = fcntl(event, F_DUPFD_CLOEXEC, 3);
  Failure failure;
  task->device = ownsDevice(env, fd);
  if (task->done < 0) failure = {"fcntl(F_DUPFD)", errno};
  else task->fd = takeDescriptor(env, task->kind, fd, &failure);
  if (failure.call == nullptr) {
    const int error = startDetached([task] { runTask(task); });
    if (error != 0) {
      failure = {"pthread_create", error};
      if (task->kind == kReset) close(task->fd);
      else if (task->device) ownDevice(env, fd);
      else ownDescriptor(env, fd);
    }
  }
  if (failure.call != nullptr) {
    if (task->done >= 0) close(task->done);
    close(event);
    return throwErrno(env, failure.error, failure.call);
  }
  if (kind == kClose) room->counters.erase(fd);
  {
    std::lock_guard lock(tableLock);
    tasks[event] = {env, task};
  }
  return giveDescriptor(env, event);
}

napi_value blockingResult(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int event, result = 0;
  if (!args.fd(0, "eventfd", &event)) return nullptr;
  bool known;
  {
    std::lock_guard lock(tableLock);
    const auto found = tasks.find(event);
    known = found != tasks.end() && found->second.env == env;
    if (known) result = found->second.task->result.load();
    if (known && result >= 0) tasks.erase(found);
  }
  return known ? makeNumber(env, result) : throwErrno(env, EBADF, "blockingResult");
}

void forgetTasks(void* data) {
  const napi_env env = static_cast<napi_env>(data);
  std::lock_guard lock(tableLock);
  std::erase_if(tasks, [env](const auto& entry) { return entry.second.env == env; });
}

}  // namespace

bool closeDevices(std::vector<int> fds) {
  if (fds.empty()) return true;
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
  };
  auto shared = std::make_shared<Shared>();
  const auto work = [shared, fds = std::move(fds)] {
    for (int fd : fds) stopDma(fd);
    for (int fd : fds) close(fd);
    std::lock_guard lock(shared->mutex);
    shared->done = true;
    shared->changed.notify_all();
  };
  if (startDetached(work) != 0) {
    work();  // no thread to be had: better late than not
    return true;
  }
  std::unique_lock lock(shared->mutex);
  return shared->changed.wait_for(lock, kCloseBound, [&] { return shared->done; });
}

bool initBlocking(napi_env env, napi_value exports, Room* room) {
  constexpr RoomFunction functions[] = {
      {"blockingStart", blockingStart},
      {"blockingResult", blockingResult},
  };
  return napi_add_env_cleanup_hook(env, forgetTasks, env) == napi_ok &&
         defineInRoom(env, exports, room, functions);
}

}  // namespace penstock
