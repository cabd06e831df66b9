// What the registry asks of device regions. See region.cc for their rules.

#pragma once

#include "registry.h"

namespace penstock {

// Pages of 0xff in place of a region's, at once, and its lost word. False when they could not be
// had. Under both locks.
bool placeOnes(const Mapping& mapping);

}  // namespace penstock
