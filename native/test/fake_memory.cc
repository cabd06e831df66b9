#include "fake_memory.h"

#include <sys/mman.h>

#include "../memory.h"
#include "expect.h"

namespace penstock {

static uint8_t* makeMemory() {
  constexpr size_t kPageBytes = 4096;
  void* start = mmap(nullptr, kFakeBytes + 2 * kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
  EXPECT(start != MAP_FAILED);
  uint8_t* memory = static_cast<uint8_t*>(start) + kPageBytes;
  EXPECT(mprotect(memory, kFakeBytes, PROT_READ | PROT_WRITE) == 0);
  return memory;
}

uint8_t* fakeMemory() {
  static uint8_t* const memory = makeMemory();
  return memory;
}

void* resolve(uint64_t address, uint64_t bytes, bool writable) {
  const uint64_t allowed = writable ? kFakeWritableBytes : kFakeBytes;
  if (address < kFakeAddress || address > kFakeAddress + allowed) return nullptr;
  if (bytes > kFakeAddress + allowed - address) return nullptr;
  return fakeMemory() + (address - kFakeAddress);
}

// Status words are no part of this: what counts them is tested through the addon.
void countCopies(uint32_t, uint64_t) {}

SegmentLock::SegmentLock() {}
SegmentLock::~SegmentLock() {}

}  // namespace penstock
