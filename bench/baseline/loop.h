// The client half of null-loop and memory-loop: the loop of bench/hot-loop.ts, word for word.
//
// A client fills 32-byte request records in a ring (layout: lib/hpdi/records.ts), calls the driver
// once per batch through a function pointer, lets it copy 16-byte completion records into its own
// completion array, gives each tag back to a stack of free tags and counts the latency. The clock
// is read once per submission and once per poll. Both rings hold `depth` records, a power of two.

#pragma once

#include "common.h"

enum { REQ_OP, REQ_TAG, REQ_BLOCKS, REQ_AUX, REQ_LBA_LO, REQ_LBA_HI, REQ_ADDRESS_LO,
       REQ_ADDRESS_HI, REQ_WORDS };
enum { CPL_TAG, CPL_STATUS, CPL_RESULT_LO, CPL_RESULT_HI, CPL_WORDS };
enum { OP_READ = 1 };
enum { STATUS_OK, STATUS_BAD_ADDRESS, STATUS_BAD_RANGE, STATUS_BAD_REQUEST, STATUS_UNSUPPORTED };

#define ACCESS_GRANULE_SHIFT 21
#define ACCESS_ENTRIES (1u << 23)
#define ACCESS_WRITABLE 3

struct driver {
  uint32_t (*submit)(struct driver *, const uint32_t *sq, uint32_t head, uint32_t tail);
  uint32_t (*poll)(struct driver *, uint32_t *cq, uint32_t max);
  // One byte per 2 MiB of the address space: 0 nothing, 1 readable, 3 readable and writable.
  const uint8_t *access;
  uint64_t capacityBlocks;
  uint32_t blockBytes;
  uint32_t mask;
  // Completions not yet polled: done[head & mask] … done[tail - 1 & mask].
  uint32_t *done;
  uint32_t doneHead, doneTail;
  // memory-loop only: the device's bytes, and where Address 0 lies for its clients' buffers.
  uint8_t *region, *base;
};

struct loopResult {
  uint64_t operations;
  double elapsedNs, p50Ns, p99Ns;
};

static inline void *zeroed(size_t count, size_t bytes) {
  void *memory = calloc(count, bytes);
  if (memory == NULL) fail("out of memory");
  return memory;
}

// Whether [address, address + bytes) is memory that the device may write: every granule of it.
static inline int addressWritable(const uint8_t *access, uint32_t lo, uint32_t hi,
                                  uint32_t bytes) {
  if (hi >> 12 != 0) return 0;
  uint64_t address = (uint64_t)hi << 32 | lo;
  uint64_t last = (address + bytes - 1) >> ACCESS_GRANULE_SHIFT;
  if (last >= ACCESS_ENTRIES) return 0;
  for (uint64_t granule = address >> ACCESS_GRANULE_SHIFT; granule <= last; granule++) {
    if ((access[granule] & ACCESS_WRITABLE) != ACCESS_WRITABLE) return 0;
  }
  return 1;
}

// The status of one request: operation, size, range, address, in the driver's order.
static inline uint32_t checkRequest(const struct driver *driver, const uint32_t *request) {
  if ((request[REQ_OP] & 0xff) != OP_READ || request[REQ_OP] >> 8 != 0) return STATUS_UNSUPPORTED;
  uint32_t blocks = request[REQ_BLOCKS];
  if (blocks == 0 || blocks > 1u << 16) return STATUS_BAD_REQUEST;
  uint64_t lba = (uint64_t)request[REQ_LBA_HI] << 32 | request[REQ_LBA_LO];
  if (lba > driver->capacityBlocks || blocks > driver->capacityBlocks - lba) {
    return STATUS_BAD_RANGE;
  }
  if (!addressWritable(driver->access, request[REQ_ADDRESS_LO], request[REQ_ADDRESS_HI],
                       blocks * driver->blockBytes)) {
    return STATUS_BAD_ADDRESS;
  }
  return STATUS_OK;
}

__attribute__((noinline)) static uint32_t pollDone(struct driver *driver, uint32_t *cq,
                                                   uint32_t max) {
  uint32_t count = driver->doneTail - driver->doneHead;
  if (count > max) count = max;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t *from = driver->done + (driver->doneHead + i & driver->mask) * CPL_WORDS;
    uint32_t *to = cq + i * CPL_WORDS;
    to[CPL_TAG] = from[CPL_TAG];
    to[CPL_STATUS] = from[CPL_STATUS];
    to[CPL_RESULT_LO] = from[CPL_RESULT_LO];
    to[CPL_RESULT_HI] = from[CPL_RESULT_HI];
  }
  driver->doneHead += count;
  return count;
}

// `addresses` holds the buffer's Address per tag; `unitBlocks` is one operation in blocks.
static struct loopResult runLoop(struct driver *driver, uint32_t depth, uint32_t unitBlocks,
                                 const uint64_t *addresses, double runtimeS) {
  uint32_t mask = depth - 1, tail = 0, head = 0, inFlight = 0;
  uint32_t *sq = zeroed(depth, REQ_WORDS * 4), *cq = zeroed(depth, CPL_WORDS * 4);
  uint32_t *freeTags = zeroed(depth, 4), freeCount = depth;
  uint64_t *startTicks = zeroed(depth, 8);
  static struct histogram histogram;
  struct random random;
  struct loopResult result = {0};
  randomSeed(&random, 1);
  for (uint32_t i = 0; i < depth; i++) freeTags[i] = i;
  uint64_t units = driver->capacityBlocks / unitBlocks;

  double ticksPerNs = tscTicksPerNs();
  uint64_t start = __rdtsc(), now = start;
  uint64_t deadline = start + (uint64_t)(runtimeS * 1e9 * ticksPerNs);
  while (now < deadline) {
    uint32_t granted = depth - inFlight - (tail - head);
    if (granted > freeCount) granted = freeCount;
    uint64_t stamp = __rdtsc();
    for (uint32_t i = 0; i < granted; i++) {
      uint32_t *request = sq + (tail + i & mask) * REQ_WORDS;
      uint32_t tag = freeTags[--freeCount];
      uint64_t lba = randomBlock(&random, units) * unitBlocks;
      request[REQ_OP] = OP_READ;
      request[REQ_TAG] = tag;
      request[REQ_BLOCKS] = unitBlocks;
      request[REQ_AUX] = 0;
      request[REQ_LBA_LO] = (uint32_t)lba;
      request[REQ_LBA_HI] = (uint32_t)(lba >> 32);
      request[REQ_ADDRESS_LO] = (uint32_t)addresses[tag];
      request[REQ_ADDRESS_HI] = (uint32_t)(addresses[tag] >> 32);
      startTicks[tag] = stamp;
    }
    tail += granted;
    // The compiler must not see which driver it is: one indirect call per batch.
    __asm__ volatile("" : "+r"(driver) : : "memory");
    uint32_t taken = driver->submit(driver, sq, head, tail);
    head += taken;
    inFlight += taken;
    uint32_t done = driver->poll(driver, cq, depth);
    inFlight -= done;
    now = __rdtsc();
    for (uint32_t i = 0; i < done; i++) {
      const uint32_t *completion = cq + i * CPL_WORDS;
      uint32_t tag = completion[CPL_TAG];
      if (completion[CPL_STATUS] != STATUS_OK) fail("status %u", completion[CPL_STATUS]);
      histogramRecord(&histogram, now - startTicks[tag]);
      freeTags[freeCount++] = tag;
    }
    result.operations += done;
  }
  result.elapsedNs = (double)(now - start) / ticksPerNs;
  result.p50Ns = (double)histogramPercentile(&histogram, 0.5) / ticksPerNs;
  result.p99Ns = (double)histogramPercentile(&histogram, 0.99) / ticksPerNs;
  free(sq);
  free(cq);
  free(freeTags);
  free(startTicks);
  return result;
}

static void printResult(const struct loopResult *result, uint32_t depth) {
  double operations = (double)result->operations;
  printf("{\"iops\":%.0f,\"ns_per_io\":%.3f,\"depth\":%u,\"ios\":%.0f,"
         "\"clat_ns\":{\"p50\":%.0f,\"p99\":%.0f}}\n",
         operations / result->elapsedNs * 1e9, result->elapsedNs / operations, depth, operations,
         result->p50Ns, result->p99Ns);
}

static uint32_t depthOption(int argc, char **argv) {
  uint32_t depth = (uint32_t)numberOption(argc, argv, "--depth", 128);
  if (depth < 1 || depth > 65536 || (depth & (depth - 1)) != 0) {
    fail("--depth is a power of two, 1 to 65536");
  }
  return depth;
}
