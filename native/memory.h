// What the addon's other files may ask of the segment registry. See memory.cc for its invariants.

#pragma once

#include <node_api.h>

#include <cstdint>

namespace penstock {

// The memory at [address, address + bytes), or nullptr unless all of it lies in live segments of the
// wanted access. The pages stay mapped (perhaps replaced by anonymous ones) while an ArrayBuffer over
// the segment is left in any environment.
void* resolve(uint64_t address, uint64_t bytes, bool writable);

// A mapping outside the address space (io_uring's rings) that must outlive every ArrayBuffer over it.
// adoptMapping gives an id; mappingBuffer one external ArrayBuffer per call; closeMapping replaces the
// pages by anonymous ones, and the last finaliser unmaps them.
uint32_t adoptMapping(void* start, uint64_t bytes);
napi_value mappingBuffer(napi_env env, uint32_t mapping, uint64_t offset, uint64_t bytes);
void closeMapping(uint32_t mapping);

// Descriptors that belong to an environment and are closed when it ends.
bool ownDescriptor(napi_env env, int fd);
bool disownDescriptor(napi_env env, int fd);  // true when this environment owned it

}  // namespace penstock
