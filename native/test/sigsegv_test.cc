// The report of a SIGSEGV, in processes that fault on purpose: what it says, when it says nothing,
// and that the process ends as it would have.

#include "../sigsegv.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "../check.h"
#include "../registry.h"
#include "expect.h"

namespace penstock {

// In place of registry.cc: one domain, and an access map that tests fill.
Registry registry;

namespace {

constexpr uint64_t kPeer = 3 * kSlotBytes + 5 * kGranuleBytes;
constexpr uint64_t kOwn = 2 * kSlotBytes + 7 * kGranuleBytes;

volatile uint8_t* at(uint64_t address) {
  return reinterpret_cast<volatile uint8_t*>(kBase + address);
}

void place(uint64_t address, int protection, uint8_t access) {
  void* const start = const_cast<uint8_t*>(at(address));
  EXPECT(mmap(start, kGranuleBytes, protection,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == start);
  registry.access[address / kGranuleBytes] = access;
}

void store(uint64_t address) { *at(address) = 1; }
void load(uint64_t address) { (void)*at(address); }
void ask(uint64_t) { kill(getpid(), SIGSEGV); }
void outside(uint64_t) { *reinterpret_cast<volatile uint8_t*>(16) = 1; }

struct Ended {
  int signal;
  std::string text;
};

// How a child ends that does it, and what it wrote on stderr. `handler`: the one before ours.
Ended run(void (*fault)(uint64_t), uint64_t address, void (*handler)(int) = SIG_DFL) {
  int ends[2];
  EXPECT(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    const rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    dup2(ends[1], STDERR_FILENO);
    signal(SIGSEGV, handler);
    if (installSigsegv() != 0) _exit(2);
    fault(address);
    _exit(0);
  }
  close(ends[1]);
  Ended ended = {0, ""};
  char bytes[512];
  ssize_t count;
  while ((count = read(ends[0], bytes, sizeof bytes)) > 0) ended.text.append(bytes, count);
  close(ends[0]);
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child);
  ended.signal = WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
  return ended;
}

void expectReport(const Ended& ended, const std::string& text) {
  if (ended.text != text) fprintf(stderr, "got: %s\n", ended.text.c_str());
  EXPECT(ended.text == text);
  EXPECT(ended.signal == SIGSEGV);
}

void reports() {
  expectReport(run(store, kPeer + 0x123),
               "penstock: store to Address 0x3000a00123, read-only memory of domain 3: it belongs "
               "to another process. The value was not written; this process ends.\n");
  expectReport(run(store, kOwn),
               "penstock: store to Address 0x2000e00000, memory that this process imported for "
               "reading only. The value was not written; this process ends.\n");
  expectReport(run(store, kPeer + kGranuleBytes),
               "penstock: store to Address 0x3000c00000, in the slot of domain 3: no memory is "
               "mapped there. This process ends.\n");
  expectReport(run(load, kSpaceBytes - 1),
               "penstock: load from Address 0xfffffffffff, in the slot of domain 255: no memory is "
               "mapped there. This process ends.\n");
}

void names() {
  const char hostile[] = "disk\x1b[2J\n\xff~";
  nameDomain(3, hostile, sizeof hostile - 1);
  const std::string before = "penstock: load from Address 0x3000c00001, in the slot of domain 3";
  const std::string after = ": no memory is mapped there. This process ends.\n";
  expectReport(run(load, kPeer + kGranuleBytes + 1), before + " (disk?[2J??~)" + after);
  const std::string full(kDomainNameBytes, 'n');
  nameDomain(3, (full + "more").data(), full.size() + 4);
  expectReport(run(load, kPeer + kGranuleBytes + 1), before + " (" + full + ")" + after);
  nameDomain(3, "", 0);
  expectReport(run(load, kPeer + kGranuleBytes + 1), before + after);
}

void others() {
  expectReport(run(outside, 0), "");
  expectReport(run(ask, 0), "");
  // Its access is as the map says: somebody else's doing.
  place(kOwn + kGranuleBytes, PROT_NONE, 3);
  expectReport(run(store, kOwn + kGranuleBytes), "");
  expectReport(run(load, kOwn + kGranuleBytes), "");
  EXPECT(run(load, kPeer).signal == 0);
}

void handlerBefore() {
  // Called after the report; the one that ends the process here.
  const Ended ended = run(store, kPeer, [](int signal) { _exit(signal); });
  EXPECT(ended.signal == -SIGSEGV);
  EXPECT(ended.text.find("read-only memory of domain 3") != std::string::npos);
  EXPECT(run(outside, 0, [](int) { _exit(77); }).signal == -77);
  expectReport(run(outside, 0, SIG_IGN), "");  // a fault cannot be ignored
  // One that repairs, as far as it can: the access runs again, and one line was enough.
  const Ended repaired = run(store, kPeer, [](int) {
    static int calls = 0;
    if (++calls < 3) return;
    mprotect(const_cast<uint8_t*>(at(kPeer)), kGranuleBytes, PROT_READ | PROT_WRITE);
  });
  EXPECT(repaired.signal == 0);
  EXPECT(repaired.text.find("penstock") == repaired.text.rfind("penstock"));
}

void silentStderr() {
  // A stderr that nobody reads does not keep the process.
  int ends[2];
  EXPECT(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    char bytes[4096] = {};
    alarm(20);
    for (int i = 0; i < 16; i++) {
      if (write(ends[1], bytes, sizeof bytes) < 0) _exit(3);
    }
    dup2(ends[1], STDERR_FILENO);
    signal(SIGSEGV, SIG_DFL);
    if (installSigsegv() != 0) _exit(2);
    store(kPeer);
  }
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child);
  EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
  close(ends[0]);
  close(ends[1]);
}

}  // namespace

}  // namespace penstock

int main() {
  using namespace penstock;
  void* const access = mmap(nullptr, kAccessBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  constexpr int kReserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  void* const space = mmap(reinterpret_cast<void*>(kBase), kSpaceBytes, PROT_NONE, kReserve, -1, 0);
  EXPECT(access != MAP_FAILED && space != MAP_FAILED);
  registry.access = static_cast<uint8_t*>(access);
  registry.domain = 2;
  place(kPeer, PROT_READ, 1);
  place(kOwn, PROT_READ, 1);
  reports();
  names();
  others();
  handlerBefore();
  silentStderr();
  return 0;
}
