// The SIGSEGV handler: a process that stores through a peer's mapping, or touches a part of the
// address space where nothing is, says on stderr what it did before it ends.
//
// Invariants
// 1. The handler serves no fault. It writes at most one line and hands over to the handler that was
//    there before (V8's, for WebAssembly, in Node), or to the default action: the process ends, and
//    dumps core, as it would have.
// 2. It uses only atomics, plain reads of memory that stays mapped (the access map) and system
//    calls. It takes no lock, may run in any thread, several at once, and does not hang on a
//    stderr that nobody reads.
// 3. It runs under the signal mask and flags of the handler before it, and gives it all three
//    arguments whether or not it asked for them (SA_SIGINFO): x86-64 passes them always, so a
//    handler may count on them.
// 4. Names come from peers and end on a terminal: nothing but printable ASCII is kept of them.

#include "sigsegv.h"

#include <poll.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "check.h"
#include "registry.h"

namespace penstock {

namespace {

constexpr size_t kNameWords = kDomainNameBytes / sizeof(uint64_t);
constexpr greg_t kErrorWrite = 2;  // of the page fault's error code
constexpr greg_t kErrorFetch = 16;
constexpr int kStderrWaitMs = 100;

// Words, so that a name that changes while it is reported is torn at worst.
std::atomic<uint64_t> names[kDomains][kNameWords];
std::atomic<bool> reported{false};
struct sigaction previous;

// One line of text, built without allocating; what does not fit is cut off.
class Line {
 public:
  Line& text(const char* text) {
    while (*text != 0) put(*text++);
    return *this;
  }

  Line& number(uint64_t value, uint64_t base) {
    char digits[20];
    size_t count = 0;
    do {
      digits[count++] = "0123456789abcdef"[value % base];
      value /= base;
    } while (value != 0);
    while (count > 0) put(digits[--count]);
    return *this;
  }

  // "domain 3 (disk-driver)"
  Line& domain(uint64_t domain) {
    text("domain ").number(domain, 10);
    uint64_t words[kNameWords];
    for (size_t i = 0; i < kNameWords; i++) words[i] = names[domain][i].load();
    char name[sizeof words + 1] = {};
    memcpy(name, words, sizeof words);
    if (name[0] != 0) text(" (").text(name).text(")");
    return *this;
  }

  void send() const {
    pollfd ready = {STDERR_FILENO, POLLOUT, 0};
    if (poll(&ready, 1, kStderrWaitMs) != 1) return;
    // What goes wrong here cannot be reported anywhere.
    if (write(STDERR_FILENO, bytes_, count_) < 0) return;
  }

 private:
  void put(char c) {
    if (count_ < sizeof bytes_) bytes_[count_++] = c;
  }

  char bytes_[400];
  size_t count_ = 0;
};

void reportReadOnly(uint64_t address) {
  const uint64_t domain = address / kSlotBytes;
  Line line;
  line.text("penstock: store to Address 0x").number(address, 16);
  if (domain == registry.domain) {
    line.text(", memory that this process imported for reading only");
  } else {
    line.text(", read-only memory of ").domain(domain).text(": it belongs to another process");
  }
  line.text(". The value was not written; this process ends.\n").send();
}

void reportHole(uint64_t address, bool store) {
  Line line;
  line.text("penstock: ").text(store ? "store to" : "load from").text(" Address 0x");
  line.number(address, 16).text(", in the slot of ").domain(address / kSlotBytes);
  line.text(": no memory is mapped there. This process ends.\n").send();
}

// Writes the line when the fault is an access to the address space that its memory does not allow.
void report(const siginfo_t* info, const void* context) {
  const uint64_t fault = reinterpret_cast<uint64_t>(info->si_addr);
  if (info->si_code <= 0 || info->si_code == SI_KERNEL) return;  // sent; or no address is known
  if (fault < kBase || fault - kBase >= kSpaceBytes) return;
  const greg_t error = static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR];
  if ((error & kErrorFetch) != 0) return;
  const uint64_t address = fault - kBase;
  const bool store = (error & kErrorWrite) != 0;
  const uint8_t access = registry.access[address / kGranuleBytes];
  // One line, whoever else is at fault meanwhile or if a handler before this one goes on.
  if (access == 0 && !reported.exchange(true)) reportHole(address, store);
  if (access == 1 && store && !reported.exchange(true)) reportReadOnly(address);
}

void onSigsegv(int signal, siginfo_t* info, void* context) {
  const int savedErrno = errno;
  report(info, context);
  errno = savedErrno;
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_sigaction(signal, info, context);
    return;
  }
  struct sigaction original = {};
  original.sa_handler = SIG_DFL;
  sigaction(SIGSEGV, &original, nullptr);  // the access runs again and ends the process
  if (info->si_code <= 0) raise(signal);   // sent by kill: there is no access
}

}  // namespace

int installSigsegv() {
  static bool installed = false;
  if (installed) return 0;
  if (sigaction(SIGSEGV, nullptr, &previous) != 0) return errno;
  struct sigaction action = previous;
  action.sa_sigaction = onSigsegv;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | (previous.sa_flags & (SA_NODEFER | SA_RESTART));
  if (sigaction(SIGSEGV, &action, nullptr) != 0) return errno;
  installed = true;
  return 0;
}

void nameDomain(uint32_t domain, const char* name, size_t bytes) {
  char kept[kDomainNameBytes] = {};
  for (size_t i = 0; i < std::min(bytes, sizeof kept); i++) {
    kept[i] = name[i] >= ' ' && name[i] <= '~' ? name[i] : '?';
  }
  uint64_t words[kNameWords];
  memcpy(words, kept, sizeof words);
  for (size_t i = 0; i < kNameWords; i++) names[domain][i].store(words[i]);
}

}  // namespace penstock
