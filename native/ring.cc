#include "ring.h"

#include <atomic>
#include <cerrno>

#include "memory.h"

namespace penstock {

namespace {

constexpr uint32_t kDrainUs = 100'000;
constexpr int kDrainRounds = 10;

uint32_t load(uint32_t* word) {
  return std::atomic_ref<uint32_t>(*word).load(std::memory_order_acquire);
}

}  // namespace

int registerCall(int fd, unsigned opcode, void* argument, unsigned count) {
  const long result = syscall(__NR_io_uring_register, fd, opcode, argument, count);
  return result < 0 ? -errno : static_cast<int>(result);
}

bool drainRing(Ring* ring) {
  for (int round = 0; round < kDrainRounds; round++) {
    if (load(ring->submitted) == load(ring->completed)) return true;
    Control control = {};
    control.minComplete = load(ring->submitted) - load(ring->reaped);
    control.timeoutUs = kDrainUs;
    // What it returns does not matter: interrupted, timed out or done, the words say.
    enterOnce(ring, control, IORING_ENTER_GETEVENTS | ring->enterFlags);
  }
  return load(ring->submitted) == load(ring->completed);
}

void closeRing(Ring* ring) {
  if (ring->rings != 0) closeMapping(ring->rings);
  if (ring->sqes != 0) closeMapping(ring->sqes);
  if ((ring->enterFlags & IORING_ENTER_REGISTERED_RING) != 0) {
    io_uring_rsrc_update update = {};
    update.offset = static_cast<uint32_t>(ring->enterFd);
    registerCall(ring->fd, IORING_UNREGISTER_RING_FDS, &update, 1);
  }
  close(ring->fd);
  delete ring;
}

}  // namespace penstock
