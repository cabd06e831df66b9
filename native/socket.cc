// Unix sockets that keep message boundaries and carry descriptors (SOCK_SEQPACKET, SCM_RIGHTS), and
// what they have in common with streams (unix.h).
//
// Invariants:
// - No call blocks, whatever the flags of the descriptor it is given (MSG_DONTWAIT).
// - Every descriptor that comes in is close-on-exec from the start and owned by the environment, or
//   closed: a message that was cut short, in bytes or in descriptors, gives none at all.
// - Lists are read before views: reading a list may run JavaScript, which may detach a view.

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <string>

#include "check.h"
#include "descriptor.h"
#include "memory.h"
#include "unix.h"

namespace penstock {

namespace {

constexpr int kPeerPidfd = 77;  // SO_PEERPIDFD, Linux 6.5; older headers lack the name

int openSocket(int type) { return socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); }

napi_value closeAndThrow(napi_env env, int fd, const char* syscall) {
  const int error = errno;
  close(fd);
  return throwErrno(env, error, syscall);
}

}  // namespace

bool readUnixAddress(const Args& args, size_t i, UnixAddress* out) {
  std::string path;
  if (!args.string(i, "path", sizeof out->name.sun_path, &path)) return false;
  out->abstract = !path.empty() && path[0] == '\0';
  if (path.empty() || (out->abstract && path.size() == 1)) {
    throwRange(args.env(), "path must not be empty");
    return false;
  }
  // A name in the file system ends with a NUL inside sun_path; an abstract one is counted.
  if (!out->abstract && (path.find('\0') != std::string::npos ||
                         path.size() == sizeof out->name.sun_path)) {
    throwRange(args.env(), "path must be at most %zu bytes without a NUL",
               sizeof out->name.sun_path - 1);
    return false;
  }
  out->name.sun_family = AF_UNIX;
  memcpy(out->name.sun_path, path.data(), path.size());
  out->bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() +
                                      (out->abstract ? 0 : 1));
  return true;
}

napi_value listenUnix(const Args& args, int type) {
  const napi_env env = args.env();
  UnixAddress address;
  int64_t mode;
  if (!readUnixAddress(args, 0, &address) || !args.integer(1, "mode", 0, 0777, &mode)) {
    return nullptr;
  }
  const int fd = openSocket(type);
  if (fd < 0) return throwErrno(env, errno, "socket");
  // bind gives the file the socket's own mode less the umask, so there is no moment at which it is
  // more open than asked for; chmod adds afterwards what the umask took away.
  if (fchmod(fd, static_cast<mode_t>(mode)) != 0) return closeAndThrow(env, fd, "fchmod");
  const auto* name = reinterpret_cast<const sockaddr*>(&address.name);
  if (bind(fd, name, address.bytes) != 0) return closeAndThrow(env, fd, "bind");
  if (!address.abstract && chmod(address.name.sun_path, static_cast<mode_t>(mode)) != 0) {
    const int error = errno;
    unlink(address.name.sun_path);
    close(fd);
    return throwErrno(env, error, "chmod");
  }
  if (listen(fd, SOMAXCONN) != 0) {
    const int error = errno;
    if (!address.abstract) unlink(address.name.sun_path);
    close(fd);
    return throwErrno(env, error, "listen");
  }
  return giveDescriptor(env, fd);
}

napi_value connectUnix(const Args& args, int type) {
  const napi_env env = args.env();
  UnixAddress address;
  if (!readUnixAddress(args, 0, &address)) return nullptr;
  const int fd = openSocket(type);
  if (fd < 0) return throwErrno(env, errno, "socket");
  int result;
  do {
    result = connect(fd, reinterpret_cast<const sockaddr*>(&address.name), address.bytes);
  } while (result != 0 && errno == EINTR);
  return result != 0 ? closeAndThrow(env, fd, "connect") : giveDescriptor(env, fd);
}

void Rights::attach(msghdr* message, const int64_t* fds, size_t count) {
  if (count == 0) return;
  memset(bytes_, 0, sizeof bytes_);
  message->msg_control = bytes_;
  message->msg_controllen = CMSG_SPACE(count * sizeof(int));
  cmsghdr* rights = CMSG_FIRSTHDR(message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(count * sizeof(int));
  for (size_t i = 0; i < count; i++) {
    const int fd = static_cast<int>(fds[i]);
    memcpy(CMSG_DATA(rights) + i * sizeof(int), &fd, sizeof fd);
  }
}

void Rights::expect(msghdr* message) {
  message->msg_control = bytes_;
  message->msg_controllen = sizeof bytes_;
}

size_t Rights::take(msghdr* message, int* fds) {
  size_t count = 0;
  for (cmsghdr* c = CMSG_FIRSTHDR(message); c != nullptr; c = CMSG_NXTHDR(message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t here = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < here && count < kFdsMax; i++) {
      memcpy(&fds[count++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
    }
  }
  return count;
}

namespace {

napi_value unixListen(napi_env env, napi_callback_info info) {
  return listenUnix(Args(env, info), SOCK_SEQPACKET);
}

napi_value unixConnect(napi_env env, napi_callback_info info) {
  return connectUnix(Args(env, info), SOCK_SEQPACKET);
}

napi_value unixAccept(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  // accept has no MSG_DONTWAIT: a listening socket that was made elsewhere may block.
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return throwErrno(env, errno, "fcntl");
  if ((flags & O_NONBLOCK) == 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    return throwErrno(env, errno, "fcntl");
  }
  int peer;
  do {
    peer = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  } while (peer < 0 && (errno == EINTR || errno == ECONNABORTED));
  if (peer >= 0) return giveDescriptor(env, peer);
  return errno == EAGAIN ? makeNumber(env, -1) : throwErrno(env, errno, "accept4");
}

napi_value unixPair(napi_env env, napi_callback_info) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) {
    return throwErrno(env, errno, "socketpair");
  }
  napi_value first = giveDescriptor(env, fds[0]);
  if (first == nullptr) {
    close(fds[1]);
    return nullptr;
  }
  napi_value second = giveDescriptor(env, fds[1]);
  napi_value pair;
  if (second == nullptr || napi_create_array_with_length(env, 2, &pair) != napi_ok) {
    return nullptr;  // what was given is closed when the environment ends
  }
  napi_set_element(env, pair, 0, first);
  napi_set_element(env, pair, 1, second);
  return pair;
}

napi_value unixSend(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  int64_t list[kFdsMax];
  size_t count;
  void* data;
  size_t bytes;
  if (!args.fd(0, "fd", &fd) || !args.integers(2, "fds", 0, INT_MAX, list, kFdsMax, &count) ||
      !args.view(1, "data", 1, &data, &bytes)) {
    return nullptr;
  }
  // The receiver could not tell an empty message from the end of the stream.
  if (bytes == 0) return throwRange(env, "data must not be empty");
  iovec part = {.iov_base = data, .iov_len = bytes};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  Rights rights;
  rights.attach(&message, list, count);
  ssize_t sent;
  do {
    sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return makeNumber(env, static_cast<double>(sent));
  return errno == EAGAIN ? makeNumber(env, -1) : throwErrno(env, errno, "sendmsg");
}

napi_value unixReceive(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  void* data;
  size_t bytes;
  if (!args.fd(0, "fd", &fd) || !args.view(1, "data", 1, &data, &bytes)) return nullptr;
  if (bytes == 0) return throwRange(env, "data must not be empty");
  iovec part = {.iov_base = data, .iov_len = bytes};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  Rights rights;
  rights.expect(&message);
  ssize_t received;
  do {
    received = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  if (received < 0 && errno == EAGAIN) {
    napi_value null;
    return napi_get_null(env, &null) == napi_ok ? null : nullptr;
  }
  if (received < 0) return throwErrno(env, errno, "recvmsg");

  int fds[kFdsMax];
  size_t count = Rights::take(&message, fds);
  const bool truncated = (message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) != 0;
  if (truncated) {
    closeAll(fds, count);
    count = 0;
  }
  napi_value result, list, truncatedValue;
  if (napi_create_object(env, &result) != napi_ok ||
      napi_create_array_with_length(env, count, &list) != napi_ok ||
      napi_get_boolean(env, truncated, &truncatedValue) != napi_ok) {
    closeAll(fds, count);
    return nullptr;
  }
  for (size_t i = 0; i < count; i++) {
    napi_value given = giveDescriptor(env, fds[i]);
    if (given == nullptr) {
      closeAll(fds + i + 1, count - i - 1);
      return nullptr;
    }
    napi_set_element(env, list, static_cast<uint32_t>(i), given);
  }
  setNumber(env, result, "bytes", static_cast<double>(received));
  napi_set_named_property(env, result, "fds", list);
  napi_set_named_property(env, result, "truncated", truncatedValue);
  return result;
}

napi_value unixPeer(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  ucred credentials = {};
  socklen_t bytes = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) {
    return throwErrno(env, errno, "getsockopt");
  }
  // No peer, or one outside this pid namespace, which cannot be named.
  if (credentials.pid <= 0) return throwErrno(env, ENOTCONN, "getsockopt");
  int pidfd = -1;
  bytes = sizeof pidfd;
  if (getsockopt(fd, SOL_SOCKET, kPeerPidfd, &pidfd, &bytes) != 0) {
    if (errno != ENOPROTOOPT) return throwErrno(env, errno, "getsockopt");
    // Before Linux 6.5: by number, so a peer that has died may be taken for another process.
    pidfd = static_cast<int>(syscall(SYS_pidfd_open, credentials.pid, 0u));
    if (pidfd < 0) return throwErrno(env, errno, "pidfd_open");
  }
  napi_value pidfdValue = giveDescriptor(env, pidfd);
  napi_value result;
  if (pidfdValue == nullptr || napi_create_object(env, &result) != napi_ok) return nullptr;
  setNumber(env, result, "pid", credentials.pid);
  setNumber(env, result, "uid", credentials.uid);
  setNumber(env, result, "gid", credentials.gid);
  napi_set_named_property(env, result, "pidfd", pidfdValue);
  return result;
}

// Wakes whoever waits on either end: all duplicates of a descriptor are one socket.
napi_value unixShutdown(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!args.fd(0, "fd", &fd)) return nullptr;
  if (shutdown(fd, SHUT_RDWR) == 0 || errno == ENOTCONN) return makeUndefined(env);
  return throwErrno(env, errno, "shutdown");
}

}  // namespace

bool initSocket(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "unixListen", unixListen) &&
         defineFunction(env, exports, "unixConnect", unixConnect) &&
         defineFunction(env, exports, "unixAccept", unixAccept) &&
         defineFunction(env, exports, "unixPair", unixPair) &&
         defineFunction(env, exports, "unixSend", unixSend) &&
         defineFunction(env, exports, "unixReceive", unixReceive) &&
         defineFunction(env, exports, "unixPeer", unixPeer) &&
         defineFunction(env, exports, "unixShutdown", unixShutdown);
}

}  // namespace penstock
