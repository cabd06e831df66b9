// The SIGBUS handler: a mapping whose object vanished (a truncated file, a removed device) reads
// 0xff from then on, and its `lost` word says so.
//
// Invariants
// 1. The handler uses only atomics and system calls, takes no lock, and may run in any thread,
//    several at once.
// 2. A close replaces the pages first, clears the entry next and then waits for handlers at work
//    (`handling`). So a handler never places a page in a range that somebody else got meanwhile,
//    and a fault whose entry is gone meets good pages when it is tried again.
//    A region's entry stays until its range is unmapped: the pages that replaced it read 0xff, as
//    those that a late handler places.
// 3. Faults outside the entries go to the handler that was there before.

#include "sigbus.h"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "check.h"
#include "registry.h"

namespace penstock {

namespace {

struct Watched {
  std::atomic<uint64_t> start{0};
  std::atomic<uint64_t> end{0};
  std::atomic<uint64_t> pageBytes{4096};
  std::atomic<bool> writable{true};
};

Watched watched[kSlots];
std::atomic<uint32_t> handling{0};
struct sigaction previous;

// 0xff pages under the fault, and the mapping's lost word. False when they could not be had.
bool replacePage(uint32_t slot, uint64_t fault) {
  const uint64_t pageBytes = watched[slot].pageBytes.load();
  void* const page = reinterpret_cast<void*>(fault & ~(pageBytes - 1));
  void* fresh = mmap(nullptr, pageBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fresh == MAP_FAILED) return false;
  memset(fresh, 0xff, pageBytes);
  if (!watched[slot].writable.load()) mprotect(fresh, pageBytes, PROT_READ);
  // The word first: whoever reads 0xff can see that they mean nothing.
  statusWord(kLostWord + slot).store(1);
  statusWord(kLostCountWord).fetch_add(1);
  if (mremap(fresh, pageBytes, pageBytes, MREMAP_MAYMOVE | MREMAP_FIXED, page) != MAP_FAILED) {
    return true;
  }
  munmap(fresh, pageBytes);
  return false;
}

// Whether the access may be tried again.
bool serve(const siginfo_t* info) {
  const uint64_t fault = reinterpret_cast<uint64_t>(info->si_addr);
  for (uint32_t slot = 1; slot < kSlots; slot++) {
    const uint64_t start = watched[slot].start.load();
    if (start == 0 || fault < start || fault >= watched[slot].end.load()) continue;
    return replacePage(slot, fault);
  }
  // Closed between the fault and here: anonymous pages are there by now.
  return info->si_code == BUS_ADRERR && fault >= kBase && fault - kBase < kSpaceBytes;
}

void onSigbus(int signal, siginfo_t* info, void* context) {
  const int savedErrno = errno;
  handling.fetch_add(1);
  const bool served = serve(info);
  handling.fetch_sub(1);
  errno = savedErrno;
  if (served) return;
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != nullptr) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else {
    struct sigaction original = {};
    original.sa_handler = SIG_DFL;
    sigaction(SIGBUS, &original, nullptr);  // the access runs again and ends the process
    if (info->si_code <= 0) raise(signal);  // sent by kill: there is no access
  }
}

}  // namespace

int installSigbus() {
  static bool installed = false;
  if (installed) return 0;
  struct sigaction action = {};
  action.sa_sigaction = onSigbus;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  if (sigaction(SIGBUS, &action, &previous) != 0) return errno;
  installed = true;
  return 0;
}

void watchFaults(uint32_t slot, uint64_t start, uint64_t bytes, uint64_t pageBytes, bool writable) {
  watched[slot].end.store(start + bytes);
  watched[slot].pageBytes.store(pageBytes);
  watched[slot].writable.store(writable);
  watched[slot].start.store(start);
}

void unwatchFaults(uint32_t slot) {
  // Sequentially consistent on both sides: a handler that this wait misses has not read the entry.
  watched[slot].start.store(0);
  while (handling.load() != 0) sched_yield();
}

}  // namespace penstock
