// The hashes themselves, without Node: what hash.cc wraps and the native tests check, each variant.

#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock {

struct Hash128 {
  uint64_t low;
  uint64_t high;
};

// XXH3-128 with seed 0, by the widest vectors that this processor has.
Hash128 xxh3(const void* data, size_t bytes);

// CRC-32C (Castagnoli, reflected, RFC 3720). `crc` is 0 or the result over the bytes before these.
uint32_t crc32c(const void* data, size_t bytes, uint32_t crc);

// The variants behind the two. The AVX2 and SSE 4.2 ones need a processor that has them.
Hash128 xxh3Sse2(const void* data, size_t bytes);
Hash128 xxh3Avx2(const void* data, size_t bytes);
uint32_t crc32cTable(const void* data, size_t bytes, uint32_t crc);
uint32_t crc32cSse42(const void* data, size_t bytes, uint32_t crc);
bool hasAvx2();
bool hasCrc32c();

}  // namespace penstock
