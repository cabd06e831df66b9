// What socket.cc (messages) and stream.cc (streams) share: names of unix sockets, and descriptors
// that travel with bytes (SCM_RIGHTS).

#pragma once

#include <node_api.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "check.h"

namespace penstock {

constexpr size_t kFdsMax = 64;

struct UnixAddress {
  sockaddr_un name = {};
  socklen_t bytes = 0;
  bool abstract = false;
};

// False with an exception pending when argument `i` names no socket.
bool readUnixAddress(const Args& args, size_t i, UnixAddress* out);

// A listening or connected socket of `type`, non-blocking, close-on-exec and the environment's.
napi_value listenUnix(const Args& args, int type);
napi_value connectUnix(const Args& args, int type);

// Room for the descriptors of one message, either way.
class Rights {
 public:
  // Makes `message` carry `count` descriptors, each from 0 to INT_MAX.
  void attach(msghdr* message, const int64_t* fds, size_t count);
  // Makes `message` ready to receive up to kFdsMax.
  void expect(msghdr* message);
  // What came with a received message: at most kFdsMax fit.
  static size_t take(msghdr* message, int* fds);

 private:
  union {
    cmsghdr header_;  // for its alignment
    char bytes_[CMSG_SPACE(kFdsMax * sizeof(int))];
  };
};

inline void closeAll(const int* fds, size_t count) {
  for (size_t i = 0; i < count; i++) close(fds[i]);
}

}  // namespace penstock
