// A new descriptor on its way to JavaScript: recorded as the environment's own, so that it is
// closed when the environment ends, or closed at once when that cannot be.

#pragma once

#include <unistd.h>

#include <cerrno>

#include "check.h"
#include "memory.h"

namespace penstock {

inline napi_value giveDescriptor(napi_env env, int fd) {
  // A number that is on record already was closed behind the addon's back (fs.close); the record is
  // right again now.
  if (!ownDescriptor(env, fd) && !ownsDescriptor(env, fd)) {
    close(fd);
    return throwErrno(env, ENOMEM, "ownDescriptor");
  }
  return makeNumber(env, fd);
}

}  // namespace penstock
