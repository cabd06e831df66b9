// What the addon's other files may ask of the segment registry. See registry.cc for its invariants.

#pragma once

#include <node_api.h>

#include <cstdint>

namespace penstock {

// While one lives, no segment's pages are replaced and no range is reused. Hold it over every
// access by native code to memory that resolve() gave; never over a call that blocks.
class SegmentLock {
 public:
  SegmentLock();
  ~SegmentLock();
  SegmentLock(const SegmentLock&) = delete;
  SegmentLock& operator=(const SegmentLock&) = delete;
};

// The memory at [address, address + bytes), or nullptr unless all of it lies in live segments of
// the wanted access.
void* resolve(uint64_t address, uint64_t bytes, bool writable);

// Counts copies that were done, for those who watch that none are (status words).
void countCopies(uint32_t count, uint64_t bytes);

// A mapping outside the address space (io_uring's rings) that must outlive every ArrayBuffer over
// it. adoptMapping gives an id, 0 when the table is full; mappingBuffer an external ArrayBuffer;
// closeMapping replaces the pages by anonymous ones, and the last finaliser unmaps them.
uint32_t adoptMapping(void* start, uint64_t bytes);
napi_value mappingBuffer(napi_env env, uint32_t mapping, uint64_t offset, uint64_t bytes);
void closeMapping(uint32_t mapping);

// No address that is in use now is ever given out again: a device may still write there.
void retireAddresses();

// Descriptors that belong to an environment and are closed when it ends.
bool ownDescriptor(napi_env env, int fd);
bool disownDescriptor(napi_env env, int fd);  // true when this environment owned it
bool ownsDescriptor(napi_env env, int fd);

// The same for VFIO devices, which are closed before everything else: they may do DMA until then.
bool ownDevice(napi_env env, int fd);
bool disownDevice(napi_env env, int fd);
bool ownsDevice(napi_env env, int fd);

}  // namespace penstock
