// Surviving SIGBUS: which mappings the handler looks after. See sigbus.cc for its rules.

#pragma once

#include <cstdint>

namespace penstock {

// Puts the handler in place, once; an errno when that fails. Under both locks.
int installSigbus();

// From here on a fault in [start, start + bytes) that the object behind it cannot serve gets pages
// of 0xff and sets status word `lostWord`. One entry per mapping slot.
void watchFaults(uint32_t slot, uint64_t start, uint64_t bytes, uint64_t pageBytes, bool writable);

// Ends that, and returns only when no handler that saw the entry is still at work: from then on
// nobody but the caller places pages in the range. Call it after the pages were replaced.
void unwatchFaults(uint32_t slot);

}  // namespace penstock
