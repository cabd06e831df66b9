// Copy, compare and fill over lists of address ranges in one call (layouts in lib/native.ts).
//
// Invariants: an address is used only after resolve() has found all of its range in live segments
// of the access it needs, under the lock that keeps those from being closed; nothing of an entry is
// done when one of its addresses is bad. Ranges may overlap (memmove), within an entry and between
// entries, which are done in order.

#include "copy.h"

#include <algorithm>
#include <cstring>

#include "list.h"

namespace penstock {

namespace {

constexpr uint32_t kCopyWords = 8;
constexpr uint32_t kFillWords = 4;
constexpr uint32_t kResultWord = 5;
// Of each of the two that are compared: one of them is in a cache as a rule.
constexpr uint32_t kCompareLines = 4;

// The first differing byte's offset, or kEqual. Memory that changes meanwhile gives either answer.
uint32_t firstDifference(const uint8_t* a, const uint8_t* b, uint32_t bytes) {
  constexpr uint32_t kChunkBytes = 4096;
  for (uint32_t start = 0; start < bytes;) {
    const uint32_t chunk = std::min(kChunkBytes, bytes - start);
    if (memcmp(a + start, b + start, chunk) != 0) {
      for (uint32_t i = start; i < start + chunk; i++) {
        if (a[i] != b[i]) return i;
      }
    }
    start += chunk;
  }
  return kEqual;
}

napi_value copyList(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t* entries;
  uint32_t count;
  if (!readList(args, 0, kCopyWords, &entries, &count)) return nullptr;
  uint32_t done;
  {
    SegmentLock lock;
    done = copyEntries(entries, count);
  }
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < done; i++) {
    bytes += readWord(entries + static_cast<size_t>(i) * kCopyWords + 4);
  }
  countCopies(done, bytes);
  return makeNumber(env, done);
}

napi_value compareList(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t* entries;
  uint32_t count;
  if (!readList(args, 0, kCopyWords, &entries, &count)) return nullptr;
  SegmentLock lock;
  return makeNumber(env, compareEntries(entries, count));
}

napi_value fillList(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t* entries;
  uint32_t count;
  if (!readList(args, 0, kFillWords, &entries, &count)) return nullptr;
  SegmentLock lock;
  return makeNumber(env, fillEntries(entries, count));
}

}  // namespace

uint32_t copyEntries(const uint32_t* entries, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t* entry = entries + static_cast<size_t>(i) * kCopyWords;
    if (i + 1 < count) {
      const uint32_t* next = entry + kCopyWords;
      prefetchRange(readAddress(next + 2), readWord(next + 4));
    }
    const uint32_t bytes = readWord(entry + 4);
    uint8_t *to, *from;
    if (!resolveRange(readAddress(entry), bytes, true, &to) ||
        !resolveRange(readAddress(entry + 2), bytes, false, &from)) {
      return i;
    }
    if (bytes != 0) memmove(to, from, bytes);
  }
  return count;
}

uint32_t compareEntries(uint32_t* entries, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    uint32_t* entry = entries + static_cast<size_t>(i) * kCopyWords;
    if (i + 1 < count) {
      const uint32_t* next = entry + kCopyWords;
      prefetchRange(readAddress(next), readWord(next + 4), kCompareLines);
      prefetchRange(readAddress(next + 2), readWord(next + 4), kCompareLines);
    }
    const uint32_t bytes = readWord(entry + 4);
    uint8_t *to, *from;
    if (!resolveRange(readAddress(entry), bytes, false, &to) ||
        !resolveRange(readAddress(entry + 2), bytes, false, &from)) {
      return i;
    }
    entry[kResultWord] = firstDifference(to, from, bytes);
  }
  return count;
}

uint32_t fillEntries(const uint32_t* entries, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t* entry = entries + static_cast<size_t>(i) * kFillWords;
    const uint32_t bytes = readWord(entry + 2);
    const uint8_t pattern = static_cast<uint8_t>(readWord(entry + 3));
    uint8_t* to;
    if (!resolveRange(readAddress(entry), bytes, true, &to)) return i;
    if (bytes != 0) memset(to, pattern, bytes);
  }
  return count;
}

bool initCopy(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "copyList", copyList) &&
         defineFunction(env, exports, "compareList", compareList) &&
         defineFunction(env, exports, "fillList", fillList);
}

}  // namespace penstock
