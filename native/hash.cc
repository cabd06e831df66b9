// XXH3-128 and CRC-32C, over a view or over a list of address ranges in one call.
//
// xxHash is vendored as one header, compiled for SSE2, which every x86-64 has. Its AVX2 kernels are
// compiled beside those and joined to the same algorithm here; they are used where the processor
// and the system support them. Both give the same hash.
//
// CRC-32C runs three streams at once, because the instruction takes three cycles but can start one
// each cycle. A stream's CRC is moved past the bytes that follow it by a carry-less multiplication
// with a constant of the field.

#include "hash.h"

#include <immintrin.h>

#include <array>
#include <cstring>

#include "list.h"

#define XXH_INLINE_ALL
#define XXH_DISPATCH_AVX2 1
#define XXH_ACC_ALIGN 64  // the AVX2 kernels load the accumulator aligned
#define XXH_TARGET_AVX2 __attribute__((target("avx2")))
#include "vendor/xxhash/xxhash.h"

namespace penstock {

namespace {

// Polynomials over GF(2) modulo CRC-32C's, reflected: bit 31 is x^0.
constexpr uint32_t kPolynomial = 0x82f63b78;

constexpr uint32_t timesX(uint32_t a) { return (a >> 1) ^ ((a & 1) != 0 ? kPolynomial : 0); }

// x^n. The instruction's 64-bit fold supplies the missing 33 powers; see shift().
constexpr uint32_t power(uint32_t n) {
  uint32_t result = 1u << 31;
  for (uint32_t i = 0; i < n; i++) result = timesX(result);
  return result;
}

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// tables[k][b]: the CRC of byte b followed by k zero bytes.
constexpr Tables makeTables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++) crc = timesX(crc);
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < tables.size(); k++) {
    for (size_t byte = 0; byte < 256; byte++) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = makeTables();

uint64_t load64(const uint8_t* data) {
  uint64_t word;
  memcpy(&word, data, sizeof word);
  return word;
}

// A stream's length in each of the two sizes of step; three of the long ones nearly fill 4 KiB and
// three of the short ones 512 bytes.
constexpr uint32_t kLongBytes = 1360;
constexpr uint32_t kShortBytes = 168;

// The CRC after n more zero bytes, with factor = x^(8n - 33): the product of two reflected 32-bit
// numbers stands one place too low in 64 bits, and folding those 64 bits adds x^32.
__attribute__((target("sse4.2,pclmul"))) uint32_t shift(uint32_t crc, uint32_t factor) {
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128(static_cast<int>(crc)),
                                               _mm_cvtsi32_si128(static_cast<int>(factor)), 0);
  return static_cast<uint32_t>(
      _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(product))));
}

template <uint32_t streamBytes>
__attribute__((target("sse4.2,pclmul"))) uint32_t threeStreams(const uint8_t* data, uint32_t crc) {
  static_assert(streamBytes % 8 == 0);
  constexpr uint32_t kPastOne = power(8 * streamBytes - 33);
  constexpr uint32_t kPastTwo = power(16 * streamBytes - 33);
  uint64_t a = crc, b = 0, c = 0;
  for (uint32_t i = 0; i < streamBytes; i += 8) {
    a = _mm_crc32_u64(a, load64(data + i));
    b = _mm_crc32_u64(b, load64(data + streamBytes + i));
    c = _mm_crc32_u64(c, load64(data + 2 * streamBytes + i));
  }
  return shift(static_cast<uint32_t>(a), kPastTwo) ^ shift(static_cast<uint32_t>(b), kPastOne) ^
         static_cast<uint32_t>(c);
}

bool readRange(napi_env env, const uint32_t* entry, uint32_t index, uint8_t** data,
               uint32_t* bytes) {
  const uint64_t address = readAddress(entry);
  *bytes = readWord(entry + 2);
  if (resolveRange(address, *bytes, false, data)) return true;
  throwRange(env, "entry %u: %u bytes at 0x%llx are not in live segments", index, *bytes,
             static_cast<unsigned long long>(address));
  return false;
}

constexpr uint32_t kEntryWords = 4;

void prefetchEntry(const uint32_t* entry) {
  prefetchRange(readAddress(entry), readWord(entry + 2));
}

// Reads (entries, count, out), with `outWords` words of result an entry.
bool readHashList(const Args& args, size_t outWords, uint32_t** entries, uint32_t* count,
                  uint32_t** out) {
  void* data;
  size_t bytes;
  if (!readList(args, 0, kEntryWords, entries, count) ||
      !args.view(2, "out", sizeof(uint32_t), &data, &bytes)) {
    return false;
  }
  if (bytes / (outWords * sizeof(uint32_t)) < *count) {
    throwRange(args.env(), "out must have %zu words an entry", outWords);
    return false;
  }
  *out = static_cast<uint32_t*>(data);
  return true;
}

void storeHash(uint32_t* out, Hash128 hash) {
  out[0] = static_cast<uint32_t>(hash.low);
  out[1] = static_cast<uint32_t>(hash.low >> 32);
  out[2] = static_cast<uint32_t>(hash.high);
  out[3] = static_cast<uint32_t>(hash.high >> 32);
}

napi_value xxh3View(napi_env env, napi_callback_info info) {
  Args args(env, info);
  void *data, *out;
  size_t bytes, outBytes;
  if (!args.view(0, "data", 1, &data, &bytes) ||
      !args.view(1, "out", sizeof(uint32_t), &out, &outBytes)) {
    return nullptr;
  }
  if (outBytes < sizeof(Hash128)) return throwRange(env, "out must have 4 words");
  // Held because a view may lie over a segment.
  SegmentLock lock;
  storeHash(static_cast<uint32_t*>(out), xxh3(data, bytes));
  return makeUndefined(env);
}

napi_value crc32cView(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t seed;
  void* data;
  size_t bytes;
  if (!args.u32(1, "seed", &seed) || !args.view(0, "data", 1, &data, &bytes)) return nullptr;
  SegmentLock lock;
  return makeNumber(env, crc32c(data, bytes, seed));
}

napi_value xxh3List(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t *entries, *out;
  uint32_t count;
  if (!readHashList(args, 4, &entries, &count, &out)) return nullptr;
  SegmentLock lock;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t* entry = entries + static_cast<size_t>(i) * kEntryWords;
    if (i + 1 < count) prefetchEntry(entry + kEntryWords);
    uint8_t* data;
    uint32_t bytes;
    if (!readRange(env, entry, i, &data, &bytes)) return nullptr;
    storeHash(out + static_cast<size_t>(i) * 4, xxh3(data, bytes));
  }
  return makeUndefined(env);
}

napi_value crc32cList(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t *entries, *out;
  uint32_t count;
  if (!readHashList(args, 1, &entries, &count, &out)) return nullptr;
  SegmentLock lock;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t* entry = entries + static_cast<size_t>(i) * kEntryWords;
    if (i + 1 < count) prefetchEntry(entry + kEntryWords);
    uint8_t* data;
    uint32_t bytes;
    if (!readRange(env, entry, i, &data, &bytes)) return nullptr;
    out[i] = crc32c(data, bytes, 0);
  }
  return makeUndefined(env);
}

}  // namespace

bool hasAvx2() {
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has;
}

bool hasCrc32c() {
  static const bool has = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
  return has;
}

Hash128 xxh3Sse2(const void* data, size_t bytes) {
  const XXH128_hash_t hash = XXH3_128bits(data, bytes);
  return {.low = hash.low64, .high = hash.high64};
}

// The long-input loop over the AVX2 kernels; inputs up to 240 bytes never come here.
static XXH_TARGET_AVX2 XXH128_hash_t hashLongAvx2(const void* data, size_t bytes, XXH64_hash_t,
                                                  const void*, size_t) {
  return XXH3_hashLong_128b_internal(data, bytes, XXH3_kSecret, sizeof XXH3_kSecret,
                                     XXH3_accumulate_512_avx2, XXH3_scrambleAcc_avx2);
}

Hash128 xxh3Avx2(const void* data, size_t bytes) {
  const XXH128_hash_t hash =
      XXH3_128bits_internal(data, bytes, 0, XXH3_kSecret, sizeof XXH3_kSecret, hashLongAvx2);
  return {.low = hash.low64, .high = hash.high64};
}

Hash128 xxh3(const void* data, size_t bytes) {
  return hasAvx2() ? xxh3Avx2(data, bytes) : xxh3Sse2(data, bytes);
}

uint32_t crc32cTable(const void* data, size_t bytes, uint32_t crc) {
  const auto* at = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; bytes >= 8; bytes -= 8, at += 8) {
    const uint64_t word = load64(at) ^ crc;
    crc = 0;
    for (int k = 0; k < 8; k++) crc ^= kTables[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; bytes > 0; bytes--) crc = (crc >> 8) ^ kTables[0][(crc ^ *at++) & 0xff];
  return ~crc;
}

__attribute__((target("sse4.2,pclmul"))) uint32_t crc32cSse42(const void* data, size_t bytes,
                                                              uint32_t crc) {
  const auto* at = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; bytes >= 3 * kLongBytes; bytes -= 3 * kLongBytes, at += 3 * kLongBytes) {
    crc = threeStreams<kLongBytes>(at, crc);
  }
  for (; bytes >= 3 * kShortBytes; bytes -= 3 * kShortBytes, at += 3 * kShortBytes) {
    crc = threeStreams<kShortBytes>(at, crc);
  }
  uint64_t rest = crc;
  for (; bytes >= 8; bytes -= 8, at += 8) rest = _mm_crc32_u64(rest, load64(at));
  crc = static_cast<uint32_t>(rest);
  for (; bytes > 0; bytes--) crc = _mm_crc32_u8(crc, *at++);
  return ~crc;
}

uint32_t crc32c(const void* data, size_t bytes, uint32_t crc) {
  return hasCrc32c() ? crc32cSse42(data, bytes, crc) : crc32cTable(data, bytes, crc);
}

bool initHash(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "xxh3", xxh3View) &&
         defineFunction(env, exports, "crc32c", crc32cView) &&
         defineFunction(env, exports, "xxh3List", xxh3List) &&
         defineFunction(env, exports, "crc32cList", crc32cList);
}

}  // namespace penstock
