// Unix sockets that are streams of bytes (SOCK_STREAM), with descriptors: what vfio-user speaks.
// Accepting and asking who the peer is are the same as for messages (socket.cc).
//
// Invariants:
// - A call moves all of its bytes, or the stream is of no more use: nothing says where a part
//   ends. A deadline that passes is ETIMEDOUT; no thread blocks for longer than a slice (wait.h).
// - Looking ahead takes nothing: who is terminated between that and the receiving of the whole
//   message leaves it to others.
// - Every descriptor that comes in is close-on-exec from the start and owned by the environment, or
//   closed. A call gives the descriptors of all its bytes, or none.
// - Lists are read before views: reading a list may run JavaScript, which may detach a view. No
//   JavaScript of the caller's runs while a call waits.

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <ctime>

#include "check.h"
#include "descriptor.h"
#include "memory.h"
#include "unix.h"
#include "wait.h"

namespace penstock {

namespace {

constexpr int64_t kNapNs = 1'000'000;

napi_value streamListen(napi_env env, napi_callback_info info) {
  return listenUnix(Args(env, info), SOCK_STREAM);
}

napi_value streamConnect(napi_env env, napi_callback_info info) {
  return connectUnix(Args(env, info), SOCK_STREAM);
}

// Waits for `events`. False with an exception (or the end of the environment) pending.
bool awaitReady(const Args& args, int fd, int16_t events, const Deadline& deadline) {
  for (;;) {
    pollfd polled = {.fd = fd, .events = events, .revents = 0};
    bool last;
    const timespec slice = deadline.slice(&last);
    const int ready = ppoll(&polled, 1, &slice, nullptr);
    if (ready > 0) return true;  // errors too: the call that follows says which
    if (ready < 0 && errno != EINTR) {
      throwErrno(args.env(), errno, "ppoll");
      return false;
    }
    if (ready == 0 && last) {
      throwErrno(args.env(), ETIMEDOUT, "ppoll");
      return false;
    }
    if (!mayGoOn(args.env(), roomOf(args))) return false;
  }
}

napi_value streamSend(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  int64_t list[kFdsMax], timeoutUs;
  size_t count, bytes;
  void* data;
  if (!args.fd(0, "fd", &fd) || !args.integers(2, "fds", 0, INT_MAX, list, kFdsMax, &count) ||
      !args.integer(3, "timeoutUs", 0, kTimeoutUsMax, &timeoutUs) ||
      !args.view(1, "data", 1, &data, &bytes)) {
    return nullptr;
  }
  if (bytes == 0) return throwRange(env, "data must not be empty");
  const Deadline deadline(timeoutUs);
  Rights rights;
  size_t sent = 0;
  while (sent < bytes) {
    iovec part = {.iov_base = static_cast<char*>(data) + sent, .iov_len = bytes - sent};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (sent == 0) rights.attach(&message, list, count);  // with the first byte, once
    const ssize_t now = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (now >= 0) {
      sent += static_cast<size_t>(now);
    } else if (errno == EAGAIN) {
      if (!awaitReady(args, fd, POLLOUT, deadline)) return nullptr;
    } else if (errno != EINTR) {
      return throwErrno(env, errno, "sendmsg");
    }
  }
  return makeUndefined(env);
}

// Descriptors on their way in; those that were not given to the environment are closed.
class Incoming {
 public:
  explicit Incoming(size_t capacity) : capacity_(capacity) {}
  ~Incoming() { closeAll(fds_ + given_, count_ - given_); }
  Incoming(const Incoming&) = delete;
  Incoming& operator=(const Incoming&) = delete;

  void add(msghdr* message) {
    int fds[kFdsMax];
    const size_t count = Rights::take(message, fds);
    if ((message->msg_flags & MSG_CTRUNC) != 0 || count_ + count > capacity_) overflow_ = true;
    if (overflow_) {
      closeAll(fds, count);
      return;
    }
    memcpy(fds_ + count_, fds, count * sizeof(int));
    count_ += count;
  }

  // Into out[1…], their count into out[0]: -1 when there were more than fit.
  bool give(napi_env env, int32_t* out) {
    if (overflow_) {
      out[0] = -1;
      return true;
    }
    for (; given_ < count_; given_++) {
      if (giveDescriptor(env, fds_[given_]) == nullptr) {
        given_++;  // giveDescriptor closed it
        return false;
      }
      out[1 + given_] = fds_[given_];
    }
    if (capacity_ > 0) out[0] = static_cast<int32_t>(count_);
    return true;
  }

 private:
  int fds_[kFdsMax];
  size_t capacity_;
  size_t count_ = 0;
  size_t given_ = 0;
  bool overflow_ = false;
};

napi_value streamReceive(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  int64_t timeoutUs;
  void* data;
  void* list;
  size_t bytes, listBytes;
  if (!args.fd(0, "fd", &fd) || !args.integer(3, "timeoutUs", 0, kTimeoutUsMax, &timeoutUs) ||
      !args.view(1, "data", 1, &data, &bytes) ||
      !args.view(2, "fds", sizeof(int32_t), &list, &listBytes)) {
    return nullptr;
  }
  if (bytes == 0) return throwRange(env, "data must not be empty");
  const size_t entries = listBytes / sizeof(int32_t);
  if (entries < 1 || entries > 1 + kFdsMax) {
    return throwRange(env, "fds must have from 1 to %zu entries, not %zu", 1 + kFdsMax, entries);
  }
  int32_t* out = static_cast<int32_t*>(list);
  out[0] = 0;
  const Deadline deadline(timeoutUs);
  Incoming incoming(entries - 1);
  size_t received = 0;
  while (received < bytes) {
    iovec part = {.iov_base = static_cast<char*>(data) + received, .iov_len = bytes - received};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    Rights rights;
    rights.expect(&message);
    const ssize_t now = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (now > 0) {
      incoming.add(&message);
      received += static_cast<size_t>(now);
    } else if (now == 0) {
      return makeNumber(env, static_cast<double>(received));
    } else if (errno == EAGAIN) {
      if (!awaitReady(args, fd, POLLIN, deadline)) return nullptr;
    } else if (errno != EINTR) {
      return throwErrno(env, errno, "recvmsg");
    }
  }
  if (!incoming.give(env, out)) return nullptr;
  return makeNumber(env, static_cast<double>(received));
}

// Whether the peer has ended the stream, so that nothing more comes.
bool atEnd(int fd) {
  pollfd polled = {.fd = fd, .events = POLLRDHUP, .revents = 0};
  return poll(&polled, 1, 0) > 0 && (polled.revents & (POLLRDHUP | POLLHUP)) != 0;
}

// Part of a message's head is there and stays, so poll has nothing to wait for.
bool awaitRest(const Args& args, const Deadline& deadline) {
  const timespec nap = {.tv_sec = 0, .tv_nsec = kNapNs};
  if (deadline.passed()) {
    throwErrno(args.env(), ETIMEDOUT, "recv");
    return false;
  }
  nanosleep(&nap, nullptr);
  return mayGoOn(args.env(), roomOf(args));
}

napi_value streamPeek(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  int64_t timeoutUs;
  void* data;
  size_t bytes;
  if (!args.fd(0, "fd", &fd) || !args.integer(2, "timeoutUs", 0, kTimeoutUsMax, &timeoutUs) ||
      !args.view(1, "data", 1, &data, &bytes)) {
    return nullptr;
  }
  if (bytes == 0) return throwRange(env, "data must not be empty");
  const Deadline deadline(timeoutUs);
  for (;;) {
    const ssize_t there = recv(fd, data, bytes, MSG_DONTWAIT | MSG_PEEK);
    if (there == static_cast<ssize_t>(bytes) || there == 0) {
      return makeNumber(env, static_cast<double>(there));
    }
    if (there > 0) {
      if (atEnd(fd)) return makeNumber(env, static_cast<double>(there));
      if (!awaitRest(args, deadline)) return nullptr;
    } else if (errno == EAGAIN) {
      if (!awaitReady(args, fd, POLLIN, deadline)) return nullptr;
    } else if (errno != EINTR) {
      return throwErrno(env, errno, "recv");
    }
  }
}

napi_value streamEnd(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  if (shutdown(fd, SHUT_WR) != 0) return throwErrno(env, errno, "shutdown");
  return makeUndefined(env);
}

napi_value streamUnread(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd, bytes = 0;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  if (ioctl(fd, SIOCOUTQ, &bytes) != 0) return throwErrno(env, errno, "ioctl");
  return makeNumber(env, bytes);
}

}  // namespace

bool initStream(napi_env env, napi_value exports, Room* room) {
  constexpr RoomFunction functions[] = {
      {"streamListen", streamListen}, {"streamConnect", streamConnect},
      {"streamSend", streamSend},     {"streamReceive", streamReceive},
      {"streamPeek", streamPeek},     {"streamEnd", streamEnd},
      {"streamUnread", streamUnread},
  };
  return defineInRoom(env, exports, room, functions);
}

}  // namespace penstock
