// Lists of address ranges as JavaScript hands them over: a Uint32Array of fixed-size entries that
// another thread, or JavaScript through an overlapping view, may change at any time. Each word is
// read once (a hint to the cache apart), and only the copy is checked and used.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "check.h"
#include "memory.h"

namespace penstock {

constexpr uint32_t kLineBytes = 64;  // of a cache

inline uint32_t readWord(const uint32_t* word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }

inline uint64_t readAddress(const uint32_t* lo) {
  return readWord(lo) | static_cast<uint64_t>(readWord(lo + 1)) << 32;
}

// resolve() for the words of a list; no memory is needed for no bytes.
inline bool resolveRange(uint64_t address, uint32_t bytes, bool writable, uint8_t** out) {
  *out = nullptr;
  if (bytes == 0) return true;
  *out = static_cast<uint8_t*>(resolve(address, bytes, writable));
  return *out != nullptr;
}

// Starts loading the first lines of what the next entry will read, up to `most` of them: the
// processor goes on by itself once it sees them used, but never into the next page of 4 KiB, where
// each entry begins anew. 16 are what a core can wait for at once; more were slower, 4 a tenth so.
// A prefetch of any address is harmless.
inline void prefetchRange(uint64_t address, uint32_t bytes, uint32_t most = 16) {
  if (address >= kSpaceBytes) return;
  const char* start = reinterpret_cast<const char*>(kBase + address);
  const uint32_t end = std::min(bytes, most * kLineBytes);
  for (uint32_t at = 0; at < end; at += kLineBytes) __builtin_prefetch(start + at);
}

// Reads (entries, count) as arguments i and i + 1, with `words` words an entry.
inline bool readList(const Args& args, size_t i, size_t words, uint32_t** entries,
                     uint32_t* count) {
  void* data;
  size_t bytes;
  if (!args.u32(i + 1, "count", count) ||
      !args.view(i, "entries", sizeof(uint32_t), &data, &bytes)) {
    return false;
  }
  if (*count > bytes / (words * sizeof(uint32_t))) {
    throwRange(args.env(), "count must be at most the %zu entries there are, not %u",
               bytes / (words * sizeof(uint32_t)), *count);
    return false;
  }
  *entries = static_cast<uint32_t*>(data);
  return true;
}

}  // namespace penstock
