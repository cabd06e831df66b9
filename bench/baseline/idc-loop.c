// Two processes that share one mapping: the peer of bench/idc.ts.
// Usage: idc-loop [--runtime SECONDS] [--batch N] [--size N] [--cpu N --other-cpu N]
//
// The rings are those of lib/idc (layout.ts, ring.ts), statement by statement: records of 32 bytes
// with a lap bit, filled in private memory, stored with the first word last, copied out by the
// reader; a header per side with the index read and the word of a sleeper, which the writer looks
// at after a fence. Both processes spin. First round trips of one record, then records one way.

#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

enum { HALF_CONSUMED = 16, HALF_SLEEPING = 32, HALF_SENT = 49, HALF_WORDS = 64 };
enum { REC_SHIFT = 3, REC_WORDS = 8 };
enum { OP_ECHO = 1, OP_COUNT = 2, OP_END = 3 };
#define LAP 0x80000000u
#define WORD 0x7fffffffu
#define WINDOW_NS 1e6
#define STALL_NS 100e3
#define WINDOWS_MAX 65536

struct writer {
  volatile uint32_t *ring, *half, *peer;
  uint32_t *sq;
  uint32_t size, mask, shift, tail, head, consumed;
};

struct reader {
  volatile uint32_t *ring, *half;
  uint32_t *rq;
  uint32_t size, mask, shift, head;
};

struct rate {
  double perSecond;
  // Part of the windows that were left out.
  double disturbed;
};

static uint32_t refresh(struct writer *w) {
  w->consumed = w->peer[HALF_CONSUMED];
  uint32_t used = w->tail - w->consumed;
  if (used > w->size) fail("the reader's index is impossible");
  return w->size - used;
}

static inline uint32_t reserve(struct writer *w, uint32_t n) {
  uint32_t free = w->size - (w->tail - w->consumed);
  if (free < n) free = refresh(w);
  uint32_t granted = n < free ? n : free;
  w->tail += granted;
  return granted;
}

__attribute__((noinline)) static int submit(struct writer *w) {
  uint32_t first = w->head, tail = w->tail;
  if (first == tail) return 0;
  for (uint32_t i = first; i != tail; i++) {
    uint32_t at = (i & w->mask) << REC_SHIFT;
    for (uint32_t word = 1; word < REC_WORDS; word++) w->ring[at + word] = w->sq[at + word];
    if (i != first) w->ring[at] = (w->sq[at] & WORD) | ((i >> w->shift & 1) == 0 ? LAP : 0);
  }
  uint32_t at = (first & w->mask) << REC_SHIFT;
  w->ring[at] = (w->sq[at] & WORD) | ((first >> w->shift & 1) == 0 ? LAP : 0);
  w->head = tail;
  w->half[HALF_SENT] = tail;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return w->peer[HALF_SLEEPING] != 0;
}

__attribute__((noinline)) static uint32_t poll(struct reader *r, uint32_t max) {
  uint32_t head = r->head, to = 0;
  uint32_t end = (max < r->size ? max : r->size) << REC_SHIFT;
  while (to < end) {
    uint32_t at = (head & r->mask) << REC_SHIFT;
    uint32_t word = r->ring[at];
    if (((head >> r->shift ^ word >> 31) & 1) == 0) break;
    r->rq[to] = word & WORD;
    for (uint32_t i = 1; i < REC_WORDS; i++) r->rq[to + i] = r->ring[at + i];
    to += REC_WORDS;
    head++;
  }
  if (to != 0) {
    r->head = head;
    r->half[HALF_CONSUMED] = head;
  }
  return to >> REC_SHIFT;
}

static void put(struct writer *w, uint32_t op, uint32_t value) {
  uint32_t at = (w->tail & w->mask) << REC_SHIFT;
  while (reserve(w, 1) == 0) continue;
  w->sq[at] = op;
  w->sq[at + 1] = value;
  submit(w);
}

// The other process: answers what asks for an answer, counts the rest.
__attribute__((noreturn)) static void answer(struct reader *r, struct writer *w, uint32_t batch) {
  uint32_t sum = 0;
  for (;;) {
    uint32_t count = poll(r, batch);
    for (uint32_t i = 0; i < count; i++) {
      const uint32_t *record = r->rq + i * REC_WORDS;
      if (record[0] == OP_END) _exit(sum == 1);
      if (record[0] == OP_ECHO) put(w, OP_ECHO, record[1]);
      else sum += record[1];
    }
  }
}

static int byValue(const void *a, const void *b) {
  double left = *(const double *)a, right = *(const double *)b;
  return left < right ? -1 : left > right;
}

static void roundTrips(struct reader *r, struct writer *w, double runtimeS, double ticksPerNs,
                       struct histogram *histogram) {
  uint64_t start = __rdtsc(), last = start;
  uint64_t deadline = start + (uint64_t)(runtimeS * 1e9 * ticksPerNs);
  for (uint32_t i = 0; last < deadline; i++) {
    put(w, OP_ECHO, i);
    while (poll(r, 1) == 0) continue;
    uint64_t now = __rdtsc();
    histogramRecord(histogram, now - last);
    last = now;
  }
}

// Records a second: the median of windows of a millisecond, without those in which one of the two
// did not run (nothing moved for a while), where there are others.
static struct rate stream(struct writer *w, double runtimeS, double ticksPerNs, uint32_t batch) {
  static double windows[WINDOWS_MAX];
  uint32_t calm = 0, all = 0, number = 0;
  uint64_t windowTicks = (uint64_t)(WINDOW_NS * ticksPerNs);
  uint64_t stallTicks = (uint64_t)(STALL_NS * ticksPerNs);
  uint64_t start = __rdtsc(), windowStart = start, now = start, moved = start, longest = 0;
  uint64_t deadline = start + (uint64_t)(runtimeS * 1e9 * ticksPerNs), sent = 0;
  while (now < deadline && calm < WINDOWS_MAX) {
    uint32_t at = w->tail;
    uint32_t granted = reserve(w, batch);
    for (uint32_t i = 0; i < granted; i++) {
      uint32_t *record = w->sq + ((at + i & w->mask) << REC_SHIFT);
      record[0] = OP_COUNT;
      record[1] = number++;
      record[2] = 4096;
      record[3] = 0;
      record[4] = 0;
      record[5] = 0;
      record[6] = i;
      record[7] = 16;
    }
    submit(w);
    sent += granted;
    now = __rdtsc();
    if (granted > 0) {
      if (now - moved > longest) longest = now - moved;
      moved = now;
    }
    if (now - windowStart < windowTicks) continue;
    if (now - moved > longest) longest = now - moved;
    if (longest <= stallTicks) {
      windows[calm++] = (double)sent / ((double)(now - windowStart) / ticksPerNs) * 1e9;
    }
    all++;
    windowStart = now;
    longest = sent = 0;
  }
  while (refresh(w) != w->size) continue;
  if (calm == 0) return (struct rate){0, 1};
  qsort(windows, calm, sizeof *windows, byValue);
  return (struct rate){windows[calm / 2], 1 - (double)calm / all};
}

static void openEnds(uint8_t *own, uint8_t *peer, uint32_t size, struct writer *w,
                     struct reader *r) {
  volatile uint32_t *half = (volatile uint32_t *)own, *other = (volatile uint32_t *)peer;
  uint32_t shift = (uint32_t)__builtin_ctz(size);
  void *sq = calloc(size, REC_WORDS * 4), *rq = calloc(size, REC_WORDS * 4);
  if (sq == NULL || rq == NULL) fail("out of memory");
  *w = (struct writer){half + HALF_WORDS, half, other, sq, size, size - 1, shift, 0, 0, 0};
  *r = (struct reader){other + HALF_WORDS, half, rq, size, size - 1, shift, 0};
}

// Binds this process to the processor that an option names, if it does.
static void bind(int argc, char **argv, const char *option) {
  double cpu = numberOption(argc, argv, option, CPU_SETSIZE);
  if (cpu >= CPU_SETSIZE) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((int)cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) fail("%s: no such processor", option);
}

int main(int argc, char **argv) {
  double runtimeS = numberOption(argc, argv, "--runtime", 1);
  uint32_t batch = (uint32_t)numberOption(argc, argv, "--batch", 64);
  uint32_t size = (uint32_t)numberOption(argc, argv, "--size", 4096);
  if (size < 2 || size > 32768 || (size & (size - 1)) != 0) fail("--size is a power of two");
  if (batch < 1 || batch > size) fail("--batch is between 1 and the size");
  size_t bytes = (HALF_WORDS + (size_t)size * REC_WORDS) * 4;
  uint8_t *memory =
      mmap(NULL, bytes * 2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("out of memory");
  struct writer w;
  struct reader r;
  pid_t parent = getpid(), child = fork();
  if (child < 0) fail("no second process");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    bind(argc, argv, "--other-cpu");
    openEnds(memory + bytes, memory, size, &w, &r);
    answer(&r, &w, batch);
  }
  bind(argc, argv, "--cpu");
  openEnds(memory, memory + bytes, size, &w, &r);
  double ticksPerNs = tscTicksPerNs();
  static struct histogram histogram;
  roundTrips(&r, &w, runtimeS / 10, ticksPerNs, &histogram);
  memset(&histogram, 0, sizeof histogram);
  roundTrips(&r, &w, runtimeS, ticksPerNs, &histogram);
  stream(&w, runtimeS / 10, ticksPerNs, batch);
  struct rate rate = stream(&w, runtimeS, ticksPerNs, batch);
  put(&w, OP_END, 0);
  if (waitpid(child, NULL, 0) != child) fail("the other process is lost");
  printf("{\"rtt_ns\":{\"p50\":%.0f,\"p99\":%.0f},\"descriptors_per_s\":%.0f,"
         "\"disturbed\":%.3f}\n",
         (double)histogramPercentile(&histogram, 0.5) / ticksPerNs,
         (double)histogramPercentile(&histogram, 0.99) / ticksPerNs, rate.perSecond,
         rate.disturbed);
  return 0;
}
