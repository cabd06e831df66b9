// A null device under one client: the peer of bench/null.ts.
// Usage: null-loop [--depth N] [--runtime SECONDS]
//
// The driver checks each request as the null driver does and completes it at once; no byte moves.

#include "loop.h"

__attribute__((noinline)) static uint32_t submitNull(struct driver *driver, const uint32_t *sq,
                                                     uint32_t head, uint32_t tail) {
  uint32_t count = tail - head;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t *request = sq + (head + i & driver->mask) * REQ_WORDS;
    uint32_t *completion = driver->done + (driver->doneTail + i & driver->mask) * CPL_WORDS;
    completion[CPL_TAG] = request[REQ_TAG];
    completion[CPL_STATUS] = checkRequest(driver, request);
    completion[CPL_RESULT_LO] = 0;
    completion[CPL_RESULT_HI] = 0;
  }
  driver->doneTail += count;
  return count;
}

int main(int argc, char **argv) {
  uint32_t depth = depthOption(argc, argv);
  const uint32_t blockBytes = 512, unitBlocks = 4096 / blockBytes;
  uint8_t *access = zeroed(ACCESS_ENTRIES, 1);
  uint64_t *addresses = zeroed(depth, sizeof *addresses);
  // Where the first segment of domain 1 lies.
  const uint64_t first = 1ull << 36;
  for (uint32_t i = 0; i < depth; i++) {
    addresses[i] = first + (uint64_t)i * 4096;
    access[addresses[i] >> ACCESS_GRANULE_SHIFT] = ACCESS_WRITABLE;
  }
  struct driver driver = {
      .submit = submitNull,
      .poll = pollDone,
      .access = access,
      .capacityBlocks = (1ull << 30) / blockBytes,
      .blockBytes = blockBytes,
      .mask = depth - 1,
      .done = zeroed(depth, CPL_WORDS * 4),
  };
  struct loopResult result =
      runLoop(&driver, depth, unitBlocks, addresses, numberOption(argc, argv, "--runtime", 1));
  printResult(&result, depth);
  return 0;
}
