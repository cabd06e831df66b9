// The process-wide registry of mappings, for the files that fill it and read it: memory.cc,
// object.cc, segment.cc, status.cc, sigbus.cc, sigsegv.cc. What the rest of the addon may use
// stands in memory.h. See registry.cc for the rules.

#pragma once

#include <node_api.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>

#include "check.h"

namespace penstock {

// A failed call: its name and errno. `call` is nullptr where nothing failed.
struct Failure {
  const char* call = nullptr;
  int error = 0;
};

// Segments, then mappings outside the address space: an io_uring's rings or a DMA domain's map
// (kForeign), a device's registers (kRegion).
enum Kind : uint8_t { kPrivate, kShared, kDevice, kImported, kAdmitted, kForeign, kRegion };

constexpr uint32_t kSlots = 4096;  // mappings of one process at a time
constexpr uint64_t kAccessBytes = kSpaceBytes / kGranuleBytes;

// Status words, as lib/memory/status.ts has them.
constexpr uint32_t kEpochWord = 0;
constexpr uint32_t kLostCountWord = 1;
constexpr uint32_t kCopiesWord = 2;
constexpr uint32_t kCopiedBytesWord = 4;  // two words
constexpr uint32_t kLostWord = 16;  // of mapping slot 0
constexpr uint32_t kLivenessWord = kLostWord + kSlots;
constexpr uint32_t kLivenessWords = 4096;
constexpr uint32_t kStatusWords = kLivenessWord + kLivenessWords;

struct Mapping {
  uint32_t id = 0;  // slot + kSlots * generation; 0: slot free
  bool live = false;
  Kind kind = kPrivate;
  bool writable = false;
  uint64_t start = 0;  // virtual address
  uint64_t bytes = 0;
  uint64_t backedBytes = 0;
  uint64_t pageBytes = 4096;
  uint64_t companion = 0;
  int fd = -1;          // the object
  int readOnlyFd = -1;  // what a shared segment hands out
  napi_env owner = nullptr;
  uint32_t buffers = 0;  // ArrayBuffers over it, all environments, and other holders of the range
  bool retired = false;  // its addresses are not to be used again
  uint32_t generation = 0;

  bool isSegment() const { return kind < kForeign; }
};

struct Environment {
  std::map<uint32_t, napi_ref> buffers;  // weak, by mapping id
  std::set<int> descriptors;
  std::set<int> devices;  // VFIO devices: closed before the rest, since they do DMA
  std::set<uint32_t> liveness;
};

struct Registry {
  Mapping mappings[kSlots];
  std::map<uint64_t, uint64_t> ranges;  // occupied addresses: start → bytes
  std::map<napi_env, Environment> environments;
  uint8_t* access = nullptr;  // the access map; written under both locks
  uint32_t domain = 1;
  bool reserved = false;
  bool used = false;  // a segment existed: the domain is fixed
};

extern Registry registry;
extern pthread_rwlock_t spaceLock;
extern std::mutex tableLock;  // taken inside spaceLock when both are held

// Both locks: nobody touches segment memory or looks at the table.
class Exclusive {
 public:
  Exclusive();
  ~Exclusive();
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;
};

std::atomic_ref<uint32_t> statusWord(uint32_t index);
uint32_t* statusArray();

inline bool validPageBytes(uint64_t pageBytes) {
  return pageBytes == 4096 || pageBytes == (2ull << 20) || pageBytes == (1ull << 30);
}

inline uint64_t roundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// Reserves the address space; 0 or an errno. Under both locks.
int reserveSpace();

// Lowest free aligned address in the process's slot, or 0. Under tableLock.
uint64_t findRange(uint64_t bytes, uint64_t align);
bool rangeFree(uint64_t address, uint64_t bytes);

// A free slot, or 0. Under tableLock.
uint32_t takeSlot();
Mapping* findMapping(uint32_t id);

// Enters a mapped range into the registry; the caller has filled everything but id and live.
void publishSegment(uint32_t slot);
// Takes back the slot of a segment that came to nothing, its pages and its descriptors. Both: under
// both locks.
void abandonSegment(Mapping& mapping);

// Ends a mapping; its range is given back when no ArrayBuffer is left over it. Under both locks.
void closeLocked(Mapping& mapping);
// Counts one ArrayBuffer, or another holder of the range, less. Under both locks.
void dropBuffer(Mapping& mapping);

// An external ArrayBuffer over part of a mapping; counts it. Under no lock.
napi_value externalBuffer(napi_env env, uint32_t id, uint64_t start, uint64_t bytes);

// The environment that holds a liveness word, or nullptr. Under tableLock.
napi_env livenessOwner(uint32_t index);

// Records the environment until its end.
bool openEnvironment(napi_env env);
// Its entry, or nullptr after its end. Under tableLock.
Environment* findEnvironment(napi_env env);

// Page size of the object behind fd, or 0 with errno.
uint64_t objectPageBytes(int fd);

bool initObject(napi_env env, napi_value exports);
bool initSegment(napi_env env, napi_value exports);
bool initStatus(napi_env env, napi_value exports);

}  // namespace penstock
