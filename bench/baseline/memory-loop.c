// A memory device under one client: the peer of bench/ram.ts. Each read copies 4 KiB from a random
// place of a region far larger than the caches.
// Usage: memory-loop [--depth N] [--runtime SECONDS] [--bytes REGION] [--huge] [--prefetch]
//
// The region is a memfd like a segment's, on ordinary pages unless --huge (2 MiB pages, reserved
// beforehand). --prefetch asks for the head of the next source while one block is copied.

#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "loop.h"

static int prefetch;

__attribute__((noinline)) static uint32_t submitMemory(struct driver *driver, const uint32_t *sq,
                                                       uint32_t head, uint32_t tail) {
  uint32_t count = tail - head;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t *request = sq + (head + i & driver->mask) * REQ_WORDS;
    uint32_t *completion = driver->done + (driver->doneTail + i & driver->mask) * CPL_WORDS;
    uint32_t status = checkRequest(driver, request);
    if (prefetch && i + 1 < count) {
      const uint32_t *next = sq + (head + i + 1 & driver->mask) * REQ_WORDS;
      uint64_t lba = (uint64_t)next[REQ_LBA_HI] << 32 | next[REQ_LBA_LO];
      const uint8_t *from = driver->region + lba * driver->blockBytes;
      for (int line = 0; line < 4; line++) __builtin_prefetch(from + line * 64);
    }
    if (status == STATUS_OK) {
      uint64_t lba = (uint64_t)request[REQ_LBA_HI] << 32 | request[REQ_LBA_LO];
      uint64_t address = (uint64_t)request[REQ_ADDRESS_HI] << 32 | request[REQ_ADDRESS_LO];
      memcpy(driver->base + address, driver->region + lba * driver->blockBytes,
             (size_t)request[REQ_BLOCKS] * driver->blockBytes);
    }
    completion[CPL_TAG] = request[REQ_TAG];
    completion[CPL_STATUS] = status;
    completion[CPL_RESULT_LO] = 0;
    completion[CPL_RESULT_HI] = 0;
  }
  driver->doneTail += count;
  return count;
}

static uint8_t *mapMemfd(const char *name, size_t bytes, int huge) {
  int fd = memfd_create(name, MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
  if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0) fail("memfd: %s", strerror(errno));
  uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) fail("mmap of %zu bytes: %s", bytes, strerror(errno));
  close(fd);
  // Contents that differ per page: no page is the shared zero page.
  for (size_t at = 0; at < bytes; at += 4096) memset(memory + at, (int)(at >> 12), 4096);
  return memory;
}

int main(int argc, char **argv) {
  uint32_t depth = depthOption(argc, argv);
  const uint32_t blockBytes = 512, unitBlocks = 4096 / blockBytes;
  int huge = flagOption(argc, argv, "--huge");
  prefetch = flagOption(argc, argv, "--prefetch");
  size_t bytes = (size_t)numberOption(argc, argv, "--bytes", 1ull << 30) & ~((1ull << 21) - 1);
  if (bytes == 0) fail("--bytes is at least 2 MiB");
  size_t bufferBytes = ((size_t)depth * 4096 + (1 << 21) - 1) & ~((1ull << 21) - 1);

  uint8_t *access = zeroed(ACCESS_ENTRIES, 1);
  uint64_t *addresses = zeroed(depth, sizeof *addresses);
  const uint64_t first = 1ull << 36;
  for (uint32_t i = 0; i < depth; i++) {
    addresses[i] = first + (uint64_t)i * 4096;
    access[addresses[i] >> ACCESS_GRANULE_SHIFT] = ACCESS_WRITABLE;
  }
  struct driver driver = {
      .submit = submitMemory,
      .poll = pollDone,
      .access = access,
      .capacityBlocks = bytes / blockBytes,
      .blockBytes = blockBytes,
      .mask = depth - 1,
      .done = zeroed(depth, CPL_WORDS * 4),
      .region = mapMemfd("baseline-region", bytes, huge),
      .base = mapMemfd("baseline-buffers", bufferBytes, huge) - first,
  };
  struct loopResult result =
      runLoop(&driver, depth, unitBlocks, addresses, numberOption(argc, argv, "--runtime", 1));
  printResult(&result, depth);
  return 0;
}
