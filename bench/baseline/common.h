// What every baseline shares: the clock, the random numbers, the latency histogram, the options.
//
// A baseline does the work of one benchmark loop in plain C, so that the TypeScript loop beside it
// can be held against what the machine gives. It leaves nothing out that the TypeScript loop does:
// a random block per operation, a stamp per batch, a histogram entry per completion.

#pragma once

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <x86intrin.h>

__attribute__((noreturn, format(printf, 1, 2))) static inline void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

static inline uint64_t monotonicNs(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static inline double tscTicksPerNs(void) {
  uint64_t startNs = monotonicNs();
  uint64_t startTicks = __rdtsc();
  while (monotonicNs() - startNs < 20000000) continue;
  return (double)(__rdtsc() - startTicks) / (double)(monotonicNs() - startNs);
}

// xoshiro128** (Blackman, Vigna), the generator of the TypeScript loops.
struct random {
  uint32_t s[4];
};

static inline uint32_t rotate(uint32_t value, int bits) {
  return value << bits | value >> (32 - bits);
}

static inline uint32_t randomNext(struct random *random) {
  uint32_t *s = random->s;
  uint32_t result = rotate(s[1] * 5, 7) * 9;
  uint32_t t = s[1] << 9;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = rotate(s[3], 11);
  return result;
}

static inline void randomSeed(struct random *random, uint32_t seed) {
  for (int i = 0; i < 4; i++) {
    uint32_t z = seed += 0x9e3779b9;
    z = (z ^ z >> 16) * 0x85ebca6b;
    z = (z ^ z >> 13) * 0xc2b2ae35;
    random->s[i] = z ^ z >> 16;
  }
}

// A block below `blocks` (at most 2^32) by multiply and shift.
static inline uint64_t randomBlock(struct random *random, uint64_t blocks) {
  return (uint64_t)randomNext(random) * blocks >> 32;
}

// Log-linear: 64 buckets per power of two, so a bucket is at most 1.6 % wide.
#define HISTOGRAM_BITS 6
struct histogram {
  uint64_t counts[(65 - HISTOGRAM_BITS) << HISTOGRAM_BITS];
};

static inline uint32_t histogramIndex(uint64_t ticks) {
  if (ticks < 1u << HISTOGRAM_BITS) return (uint32_t)ticks;
  int shift = 63 - __builtin_clzll(ticks) - HISTOGRAM_BITS;
  return (uint32_t)(((uint64_t)shift << HISTOGRAM_BITS) + (ticks >> shift));
}

static inline void histogramRecord(struct histogram *histogram, uint64_t ticks) {
  histogram->counts[histogramIndex(ticks)]++;
}

// The upper bound, in ticks, of the bucket that holds the given fraction.
static inline uint64_t histogramPercentile(const struct histogram *histogram, double fraction) {
  uint64_t total = 0;
  size_t buckets = sizeof histogram->counts / sizeof histogram->counts[0];
  for (size_t i = 0; i < buckets; i++) total += histogram->counts[i];
  uint64_t wanted = (uint64_t)(fraction * (double)total);
  uint64_t seen = 0;
  for (size_t i = 0; i < buckets; i++) {
    seen += histogram->counts[i];
    if (seen <= wanted || histogram->counts[i] == 0) continue;
    if (i < 2u << HISTOGRAM_BITS) return i;
    unsigned shift = (unsigned)(i >> HISTOGRAM_BITS) - 1;
    return ((i - ((uint64_t)shift << HISTOGRAM_BITS)) + 1) << shift;
  }
  return 0;
}

struct cpuTime {
  double userNs, systemNs;
};

static inline struct cpuTime cpuTime(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (struct cpuTime){
      (double)usage.ru_utime.tv_sec * 1e9 + (double)usage.ru_utime.tv_usec * 1e3,
      (double)usage.ru_stime.tv_sec * 1e9 + (double)usage.ru_stime.tv_usec * 1e3,
  };
}

// --name VALUE anywhere in argv; `fallback` when absent.
static inline double numberOption(int argc, char **argv, const char *name, double fallback) {
  for (int i = 1; i + 1 < argc; i++) {
    if (strcmp(argv[i], name) != 0) continue;
    char *end;
    double value = strtod(argv[i + 1], &end);
    if (*end != 0 || end == argv[i + 1] || value < 0) fail("%s needs a number", name);
    return value;
  }
  return fallback;
}

static inline int flagOption(int argc, char **argv, const char *name) {
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], name) == 0) return 1;
  }
  return 0;
}
