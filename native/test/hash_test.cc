// Every variant of both hashes gives the same result and reads nothing beyond its input.

#include "../hash.h"

#include <cstring>

#include "expect.h"
#include "fake_memory.h"
#include "random.h"

namespace penstock {

static uint32_t crc32cByBits(const uint8_t* data, size_t bytes, uint32_t crc) {
  crc = ~crc;
  for (size_t i = 0; i < bytes; i++) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78 : 0);
  }
  return ~crc;
}

static bool same(Hash128 a, Hash128 b) { return a.low == b.low && a.high == b.high; }

static void knownValues() {
  EXPECT(crc32c("123456789", 9, 0) == 0xe3069283);
  EXPECT(crc32cTable("123456789", 9, 0) == 0xe3069283);
  EXPECT(same(xxh3("", 0), {.low = 0x6001c324468d497f, .high = 0x99aa06d3014798d8}));
  EXPECT(same(xxh3("abc", 3), {.low = 0x78af5f94892f3950, .high = 0x06b05ab6733a6185}));
}

// The input ends where the accessible page ends, so that one byte too many is a fault.
static void oneLength(size_t bytes, uint32_t crc) {
  const uint8_t* data = fakeMemory() + kFakeBytes - bytes;
  const uint32_t expected = crc32cByBits(data, bytes, crc);
  EXPECT(crc32cTable(data, bytes, crc) == expected);
  EXPECT(crc32c(data, bytes, crc) == expected);
  if (hasCrc32c()) EXPECT(crc32cSse42(data, bytes, crc) == expected);
  EXPECT(same(xxh3(data, bytes), xxh3Sse2(data, bytes)));
  if (hasAvx2()) EXPECT(same(xxh3Avx2(data, bytes), xxh3Sse2(data, bytes)));
}

static void allLengths() {
  Random random(1);
  for (uint64_t i = 0; i < kFakeBytes; i++) fakeMemory()[i] = static_cast<uint8_t>(random.next());
  for (size_t bytes = 0; bytes <= 1600; bytes++) oneLength(bytes, 0);
  for (size_t bytes = 4050; bytes <= 4130; bytes++) oneLength(bytes, 0);
  for (int i = 0; i < 100; i++) {
    oneLength(random.below(kFakeBytes + 1), static_cast<uint32_t>(random.next()));
  }
}

}  // namespace penstock

int main() {
  penstock::knownValues();
  penstock::allLengths();
  return 0;
}
