// The clock that tscClock gives JavaScript, for the addon's other files.

#pragma once

#include <cstdint>

namespace penstock {

// The time stamp counter, or CLOCK_MONOTONIC in nanoseconds where that is no clock.
uint64_t clockTicks();

}  // namespace penstock
