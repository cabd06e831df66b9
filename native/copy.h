// Copy, compare and fill over lists, without Node: what copy.cc wraps and the native tests check.
// Each returns the entries done: fewer than `count` when the next one has a bad address.

#pragma once

#include <cstdint>

namespace penstock {

constexpr uint32_t kEqual = 0xffffffff;

uint32_t copyEntries(const uint32_t* entries, uint32_t count);
uint32_t compareEntries(uint32_t* entries, uint32_t count);
uint32_t fillEntries(const uint32_t* entries, uint32_t count);

}  // namespace penstock
