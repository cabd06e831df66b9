// The processor: affinity, the time stamp counter and its rate, PAUSE, leaving it to another
// thread, a thread's CPU time, a barrier on all of the process's threads.
//
// The counter is used as a clock only where CPUID promises that it ticks at one rate in every power
// state (leaf 0x80000007, bit 8: what Linux calls constant_tsc and nonstop_tsc). Elsewhere the
// clock gives CLOCK_MONOTONIC in nanoseconds and the rate is 10^9, so callers need no second path.

#include <cpuid.h>
#include <immintrin.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "check.h"
#include "cpu.h"

namespace penstock {

namespace {

constexpr int kCpusMax = 8192;  // Linux's largest NR_CPUS
constexpr int64_t kPausesMax = 1'000'000;

class CpuSet {
 public:
  CpuSet() : set_(CPU_ALLOC(kCpusMax)) {
    if (set_ != nullptr) CPU_ZERO_S(bytes(), set_);
  }
  ~CpuSet() { CPU_FREE(set_); }
  CpuSet(const CpuSet&) = delete;
  CpuSet& operator=(const CpuSet&) = delete;
  cpu_set_t* get() const { return set_; }
  static size_t bytes() { return CPU_ALLOC_SIZE(kCpusMax); }

 private:
  cpu_set_t* set_;
};

napi_value cpuAffinity(napi_env env, napi_callback_info) {
  CpuSet set;
  if (set.get() == nullptr) return throwErrno(env, ENOMEM, "sched_getaffinity");
  if (sched_getaffinity(0, CpuSet::bytes(), set.get()) != 0) {
    return throwErrno(env, errno, "sched_getaffinity");
  }
  napi_value cpus;
  if (napi_create_array(env, &cpus) != napi_ok) return nullptr;
  uint32_t count = 0;
  for (int cpu = 0; cpu < kCpusMax; cpu++) {
    if (!CPU_ISSET_S(cpu, CpuSet::bytes(), set.get())) continue;
    napi_value number = makeNumber(env, cpu);
    if (number == nullptr || napi_set_element(env, cpus, count++, number) != napi_ok) {
      return nullptr;
    }
  }
  return cpus;
}

napi_value setCpuAffinity(napi_env env, napi_callback_info info) {
  Args args(env, info);
  std::vector<int64_t> cpus(kCpusMax);
  size_t count;
  if (!args.integers(0, "cpus", 0, kCpusMax - 1, cpus.data(), cpus.size(), &count)) return nullptr;
  if (count == 0) return throwRange(env, "cpus must not be empty");
  CpuSet set;
  if (set.get() == nullptr) return throwErrno(env, ENOMEM, "sched_setaffinity");
  for (size_t i = 0; i < count; i++) {
    CPU_SET_S(static_cast<size_t>(cpus[i]), CpuSet::bytes(), set.get());
  }
  // Pid 0 is the calling thread, not the process: each worker has an affinity of its own.
  if (sched_setaffinity(0, CpuSet::bytes(), set.get()) != 0) {
    return throwErrno(env, errno, "sched_setaffinity");
  }
  return makeUndefined(env);
}

// LFENCE keeps the counter from being read before earlier instructions are done; unlike RDTSCP it
// exists on every x86-64.
uint64_t readTsc() {
  _mm_lfence();
  return __rdtsc();
}

int64_t clockNs(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

struct ClockPair {
  uint64_t tsc;
  int64_t ns;
};

// Both clocks at one moment: of several tries, the one that an interrupt disturbed least.
ClockPair readBoth() {
  ClockPair best = {};
  uint64_t narrowest = UINT64_MAX;
  for (int i = 0; i < 16; i++) {
    const uint64_t before = readTsc();
    const int64_t ns = clockNs(CLOCK_MONOTONIC_RAW);
    const uint64_t width = readTsc() - before;
    if (width >= narrowest) continue;
    narrowest = width;
    best = {.tsc = before + width / 2, .ns = ns};
  }
  return best;
}

bool invariantTsc() {
  unsigned a, b, c, d;
  return __get_cpuid(0x80000007, &a, &b, &c, &d) != 0 && (d & (1u << 8)) != 0;
}

struct TscRate {
  bool usable;
  double hertz;
};

TscRate measureTsc() {
  if (!invariantTsc()) return {.usable = false, .hertz = 1e9};
  const ClockPair start = readBoth();
  timespec left = {.tv_sec = 0, .tv_nsec = 20'000'000};
  while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
  const ClockPair end = readBoth();
  // A counter that stands still or runs backwards (a hypervisor's bug) is no clock.
  if (end.tsc <= start.tsc || end.ns <= start.ns) return {.usable = false, .hertz = 1e9};
  return {.usable = true,
          .hertz = static_cast<double>(end.tsc - start.tsc) * 1e9 /
                   static_cast<double>(end.ns - start.ns)};
}

// Measured by the first caller; others, in any thread, wait for it.
const TscRate& tscRate() {
  static const TscRate rate = measureTsc();
  return rate;
}

napi_value tscHertz(napi_env env, napi_callback_info) { return makeNumber(env, tscRate().hertz); }

// What a clock's ArrayBuffer and its function share; the last of the two to be collected frees it.
struct alignas(64) ClockBlock {
  volatile uint32_t words[2];
  std::atomic<int> owners;
};

void releaseClock(napi_env, void*, void* hint) {
  auto* block = static_cast<ClockBlock*>(hint);
  if (block->owners.fetch_sub(1) == 1) delete block;
}

void store(ClockBlock* block, uint64_t value) {
  block->words[0] = static_cast<uint32_t>(value);
  block->words[1] = static_cast<uint32_t>(value >> 32);
}

napi_value readCounter(napi_env env, napi_callback_info info) {
  void* data;
  napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
  store(static_cast<ClockBlock*>(data), readTsc());
  return nullptr;
}

napi_value readMonotonic(napi_env env, napi_callback_info info) {
  void* data;
  napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
  store(static_cast<ClockBlock*>(data), static_cast<uint64_t>(clockNs(CLOCK_MONOTONIC)));
  return nullptr;
}

napi_value tscClock(napi_env env, napi_callback_info) {
  napi_value result, words, read;
  if (napi_create_object(env, &result) != napi_ok) return nullptr;
  auto* block = new ClockBlock{.words = {0, 0}, .owners = 1};
  if (napi_create_function(env, "read", NAPI_AUTO_LENGTH,
                           tscRate().usable ? readCounter : readMonotonic, block,
                           &read) != napi_ok ||
      napi_add_finalizer(env, read, block, releaseClock, block, nullptr) != napi_ok) {
    delete block;
    return throwErrno(env, ENOMEM, "tscClock");
  }
  block->owners.fetch_add(1);
  if (napi_create_external_arraybuffer(env, const_cast<uint32_t*>(block->words),
                                       sizeof block->words, releaseClock, block,
                                       &words) != napi_ok) {
    block->owners.fetch_sub(1);
    return throwErrno(env, ENOMEM, "tscClock");
  }
  napi_set_named_property(env, result, "words", words);
  napi_set_named_property(env, result, "read", read);
  return result;
}

int barrier(int command) { return static_cast<int>(syscall(SYS_membarrier, command, 0, 0)); }

// A full barrier on every running thread of the process: the slow half of a fence whose fast half
// is nothing (membarrier(2)). A process registers before its first.
napi_value membarrier(napi_env env, napi_callback_info) {
  if (barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0) return makeUndefined(env);
  if (errno == EPERM && barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0 &&
      barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0) {
    return makeUndefined(env);
  }
  return throwErrno(env, errno, "membarrier");
}

napi_value pause(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t count;
  if (!args.integer(0, "count", 0, kPausesMax, &count)) return nullptr;
  for (int64_t i = 0; i < count; i++) _mm_pause();
  return makeUndefined(env);
}

// Never fails on Linux.
napi_value yieldCpu(napi_env env, napi_callback_info) {
  sched_yield();
  return makeUndefined(env);
}

double toNs(const timeval& time) {
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_usec) * 1e3;
}

napi_value threadCpuTime(napi_env env, napi_callback_info) {
  rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage) != 0) return throwErrno(env, errno, "getrusage");
  napi_value pair, user, system;
  if (napi_create_array_with_length(env, 2, &pair) != napi_ok ||
      (user = makeNumber(env, toNs(usage.ru_utime))) == nullptr ||
      (system = makeNumber(env, toNs(usage.ru_stime))) == nullptr) {
    return nullptr;
  }
  napi_set_element(env, pair, 0, user);
  napi_set_element(env, pair, 1, system);
  return pair;
}

}  // namespace

uint64_t clockTicks() {
  return tscRate().usable ? readTsc() : static_cast<uint64_t>(clockNs(CLOCK_MONOTONIC));
}

bool initCpu(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "cpuAffinity", cpuAffinity) &&
         defineFunction(env, exports, "setCpuAffinity", setCpuAffinity) &&
         defineFunction(env, exports, "tscHertz", tscHertz) &&
         defineFunction(env, exports, "tscClock", tscClock) &&
         defineFunction(env, exports, "membarrier", membarrier) &&
         defineFunction(env, exports, "pause", pause) &&
         defineFunction(env, exports, "yieldCpu", yieldCpu) &&
         defineFunction(env, exports, "threadCpuTime", threadCpuTime);
}

}  // namespace penstock
