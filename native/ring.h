// One io_uring instance: its system calls, and its end. See uring.cc for the invariants.

#pragma once

#include <linux/io_uring.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace penstock {

// The control block, as lib/uring's Control.
struct Control {
  uint32_t toSubmit;
  uint32_t minComplete;
  uint32_t flags;      // IORING_ENTER_GETEVENTS, SQ_WAKEUP, SQ_WAIT
  uint32_t timeoutUs;  // with minComplete > 0; UINT32_MAX: no limit
  int32_t result;      // what the call returned, negative errno included
  uint32_t ring;       // id
  uint32_t stamp;      // not 0: read the clock when the call returns
  uint32_t stamps;     // clock reads so far
  uint32_t ticksLo, ticksHi;
  uint32_t reserved[6];
};
static_assert(sizeof(Control) == 64);

struct Ring {
  uint32_t id = 0;
  int fd = -1;
  int enterFd = -1;         // the registered index, or fd
  uint32_t enterFlags = 0;  // IORING_ENTER_REGISTERED_RING when enterFd is one
  bool extArg = false;
  uint32_t rings = 0, sqes = 0;  // mapping ids
  // Words of the mapped rings: operations the kernel took, completions it gave and we took.
  uint32_t* submitted = nullptr;
  uint32_t* completed = nullptr;
  uint32_t* reaped = nullptr;
};

// System calls without libc's errno and cancellation detours: they are most of what `enter` costs.
inline long enterCall(int fd, uint32_t toSubmit, uint32_t minComplete, uint32_t flags,
                      void* argument, size_t bytes) {
  register long r10 asm("r10") = flags;
  register void* r8 asm("r8") = argument;
  register size_t r9 asm("r9") = bytes;
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(__NR_io_uring_enter), "D"(static_cast<long>(fd)),
                 "S"(static_cast<unsigned long>(toSubmit)),
                 "d"(static_cast<unsigned long>(minComplete)), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

inline long enterOnce(Ring* ring, const Control& control, uint32_t flags) {
  const uint32_t timeoutUs = control.timeoutUs;
  if (control.minComplete == 0 || timeoutUs == UINT32_MAX) {
    return enterCall(ring->enterFd, control.toSubmit, control.minComplete, flags, nullptr, 0);
  }
  if (ring->extArg) {
    __kernel_timespec timeout;
    timeout.tv_sec = timeoutUs / 1000000;
    timeout.tv_nsec = (timeoutUs % 1000000) * 1000ll;
    io_uring_getevents_arg argument = {};
    argument.sigmask_sz = 8;  // the kernel's sigset_t; no mask is given
    argument.ts = reinterpret_cast<uint64_t>(&timeout);
    return enterCall(ring->enterFd, control.toSubmit, control.minComplete,
                     flags | IORING_ENTER_EXT_ARG, &argument, sizeof argument);
  }
  // Before 5.11 there is no timeout: submit, then poll the ring's descriptor.
  const long result = enterCall(ring->enterFd, control.toSubmit, 0, flags, nullptr, 0);
  pollfd wait = {ring->fd, POLLIN, 0};
  const timespec limit = {timeoutUs / 1000000, (timeoutUs % 1000000) * 1000l};
  if (result >= 0) ppoll(&wait, 1, &limit, nullptr);
  return result;
}

// io_uring_register: its result, or a negated errno.
int registerCall(int fd, unsigned opcode, void* argument, unsigned count);

// Waits, for a second at most, until nothing is in flight. False when something still is.
bool drainRing(Ring* ring);

// Unmaps (in the registry's way), closes and deletes the ring.
void closeRing(Ring* ring);

}  // namespace penstock
