// A stand-in for the segment registry: one segment of kFakeBytes at kFakeAddress whose last byte is
// followed by a page without access, and whose first half only is writable. Everything else is bad.

#pragma once

#include <cstdint>

namespace penstock {

constexpr uint64_t kFakeAddress = (1ull << 36) + 0x200000;
constexpr uint64_t kFakeBytes = 1 << 16;
constexpr uint64_t kFakeWritableBytes = kFakeBytes / 2;

// The segment's memory; always writable here.
uint8_t* fakeMemory();

}  // namespace penstock
