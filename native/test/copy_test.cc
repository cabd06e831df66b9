// The list operations against a model, at the edges of a segment, and with random hostile entries.

#include "../copy.h"

#include <cstring>
#include <vector>

#include "expect.h"
#include "fake_memory.h"
#include "random.h"

namespace penstock {

static void setEntry(uint32_t* entry, uint64_t to, uint64_t from, uint32_t bytes) {
  entry[0] = static_cast<uint32_t>(to);
  entry[1] = static_cast<uint32_t>(to >> 32);
  entry[2] = static_cast<uint32_t>(from);
  entry[3] = static_cast<uint32_t>(from >> 32);
  entry[4] = bytes;
}

static bool fits(uint64_t address, uint32_t bytes, bool writable) {
  const uint64_t allowed = writable ? kFakeWritableBytes : kFakeBytes;
  return bytes == 0 || (address >= kFakeAddress && address - kFakeAddress <= allowed &&
                        bytes <= allowed - (address - kFakeAddress));
}

// An address in the segment, on or near one of its edges, or anywhere.
static uint64_t someAddress(Random& random) {
  switch (random.below(6)) {
    case 0:
      return random.next();
    case 1:
      return random.below(2) != 0 ? 0 : UINT64_MAX - random.below(4096);
    case 2:
      return kFakeAddress + kFakeBytes - random.below(64);
    case 3:
      return kFakeAddress + kFakeWritableBytes - random.below(64);
    default:
      return kFakeAddress + random.below(kFakeBytes);
  }
}

static uint32_t someBytes(Random& random) {
  const uint64_t kind = random.below(8);
  if (kind == 0) return static_cast<uint32_t>(random.next());
  return static_cast<uint32_t>(random.below(kind == 1 ? 16384 : 80));
}

static uint32_t expectedResult(const uint32_t* entry) {
  const uint64_t to = entry[0] | static_cast<uint64_t>(entry[1]) << 32;
  const uint64_t from = entry[2] | static_cast<uint64_t>(entry[3]) << 32;
  for (uint32_t i = 0; i < entry[4]; i++) {
    if (fakeMemory()[to - kFakeAddress + i] != fakeMemory()[from - kFakeAddress + i]) return i;
  }
  return kEqual;
}

// Long ranges that differ in one byte only: the offset of each one is found.
static void everyDifference() {
  constexpr uint32_t kBytes = 9000;
  uint8_t* memory = fakeMemory();
  memset(memory, 7, kFakeBytes);
  uint32_t entry[8] = {};
  setEntry(entry, kFakeAddress, kFakeAddress + kFakeWritableBytes, kBytes);
  for (uint32_t i = 0; i < kBytes; i++) {
    memory[i] = 8;
    EXPECT(compareEntries(entry, 1) == 1 && entry[5] == i);
    memory[i] = 7;
  }
  EXPECT(compareEntries(entry, 1) == 1 && entry[5] == kEqual);
}

static void edges() {
  uint8_t* memory = fakeMemory();
  uint32_t entries[16] = {};
  memset(memory, 1, kFakeBytes);
  memset(memory + kFakeBytes - 64, 2, 64);
  const uint64_t writableEnd = kFakeAddress + kFakeWritableBytes;
  setEntry(entries, writableEnd - 64, kFakeAddress + kFakeBytes - 64, 64);
  setEntry(entries + 8, writableEnd - 63, kFakeAddress + kFakeBytes - 64, 64);
  EXPECT(copyEntries(entries, 2) == 1);
  EXPECT(memory[kFakeWritableBytes - 65] == 1 && memory[kFakeWritableBytes - 64] == 2);
  EXPECT(memory[kFakeWritableBytes - 1] == 2 && memory[kFakeWritableBytes] == 1);

  setEntry(entries, kFakeAddress + kFakeBytes - 64, writableEnd - 64, 64);
  setEntry(entries + 8, kFakeAddress, kFakeAddress + kFakeBytes - 63, 64);
  EXPECT(compareEntries(entries, 2) == 1 && entries[5] == kEqual && entries[13] == 0);
  memory[kFakeBytes - 1] = 3;
  EXPECT(compareEntries(entries, 1) == 1 && entries[5] == 63);

  const uint64_t last = writableEnd - 1;
  const uint32_t fill[8] = {static_cast<uint32_t>(last), static_cast<uint32_t>(last >> 32), 1, 9,
                            static_cast<uint32_t>(last), static_cast<uint32_t>(last >> 32), 2, 9};
  EXPECT(fillEntries(fill, 2) == 1);
  EXPECT(memory[kFakeWritableBytes - 1] == 9 && memory[kFakeWritableBytes] == 1);
}

static void randomLists(uint64_t seed) {
  constexpr uint32_t kEntries = 8;
  Random random(seed);
  uint8_t* memory = fakeMemory();
  for (uint64_t i = 0; i < kFakeBytes; i++) memory[i] = static_cast<uint8_t>(random.next());
  std::vector<uint8_t> model(memory, memory + kFakeBytes);
  // Sized to the word, so that a read beyond the last entry is seen.
  std::vector<uint32_t> entries(kEntries * 8);
  for (int round = 0; round < 3000; round++) {
    uint32_t good = 0;
    bool stopped = false;
    for (uint32_t i = 0; i < kEntries; i++) {
      const uint64_t to = someAddress(random), from = someAddress(random);
      const uint32_t bytes = someBytes(random);
      setEntry(&entries[i * 8], to, from, bytes);
      stopped = stopped || !fits(to, bytes, true) || !fits(from, bytes, false);
      if (stopped) continue;
      good++;
      if (bytes == 0) continue;
      memmove(&model[to - kFakeAddress], &model[from - kFakeAddress], bytes);
    }
    EXPECT(copyEntries(entries.data(), kEntries) == good);
    EXPECT(memcmp(memory, model.data(), kFakeBytes) == 0);
    EXPECT(compareEntries(entries.data(), kEntries) >= good);
    for (uint32_t i = 0; i < good; i++) {
      EXPECT(entries[i * 8 + 5] == expectedResult(&entries[i * 8]));
    }
    EXPECT(memcmp(memory, model.data(), kFakeBytes) == 0);
  }
}

}  // namespace penstock

int main() {
  penstock::edges();
  penstock::everyDifference();
  for (uint64_t seed = 1; seed <= 4; seed++) penstock::randomLists(seed);
  return 0;
}
