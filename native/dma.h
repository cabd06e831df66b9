// What the registry tells DMA domains. See dma.cc for their rules. Both under both locks.

#pragma once

#include "registry.h"

namespace penstock {

// The segment closes: no domain says any more that a device can reach it.
void clearDomains(const Mapping& mapping);

// The environment has ended: its domains close, and what it was mapping in others is nobody's.
void endDomains(napi_env env);

}  // namespace penstock
