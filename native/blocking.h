// Closing devices within a bound, for the registry. See blocking.cc.

#pragma once

#include <vector>

namespace penstock {

// Stops the DMA of these VFIO devices (bus master off) and closes them, on a thread of its own.
// False when that is not done within a few seconds; it goes on then. Under no lock.
bool closeDevices(std::vector<int> fds);

}  // namespace penstock
