// DMA domains: what of the address space a device can reach. Process-wide, as segments are.
//
// A domain has a map, one byte per granule as the access map, that drivers test for each buffer.
// Whoever finds a 0 holds the segment, has it mapped by the kernel or a server, and marks it. A
// segment may be closed by any thread meanwhile.
//
// Invariants
// 1. A byte of the map is not 0 only while its segment is live and mapped. A close clears the bytes
//    before it replaces the pages.
// 2. A held segment's range is not given to anybody else until the hold is dropped, even when
//    nothing else is left of it: the device may reach the old pages there until it was unmapped.
// 3. A closed segment is stale, and may be unmapped and dropped, only when nobody is mapping it:
//    otherwise the mapping could come after the unmapping.
// 4. The map and its word of stale segments lie in a mapping of the registry, so that ArrayBuffers
//    over it outlive the domain; they read 0 then.

#include "dma.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <vector>

#include "memory.h"

namespace penstock {

namespace {

constexpr uint64_t kAreaBytes = kAccessBytes + 4096;  // the map, and a page for the stale count
constexpr size_t kDomainsMax = 256;

enum State : uint8_t {
  kMapping,    // by the environment `by`
  kMapped,
  kAbandoned,  // `by` ended between hold and mark: mapped or not
};

struct Hold {
  uint32_t segment;
  uint64_t bytes;
  State state;
  napi_env by;
  bool closed;
};

struct Domain {
  napi_env owner;
  uint32_t area;  // mapping id
  uint8_t* map;
  std::map<uint64_t, Hold> holds;  // by address
};

std::map<uint32_t, Domain> domains;  // under tableLock
uint32_t lastDomain = 0;

bool isStale(const Hold& hold) { return hold.closed && hold.state != kMapping; }

void countStale(Domain& domain) {
  uint32_t count = 0;
  for (const auto& [address, hold] : domain.holds) count += isStale(hold) ? 1 : 0;
  auto* word = reinterpret_cast<uint32_t*>(domain.map + kAccessBytes);
  std::atomic_ref<uint32_t>(*word).store(count);
}

void setBytes(Domain& domain, uint64_t address, uint64_t bytes, uint8_t value) {
  memset(domain.map + address / kGranuleBytes, value, bytes / kGranuleBytes);
}

// The open domain of that number, or nullptr. Under tableLock.
Domain* findDomain(uint32_t id) {
  auto found = domains.find(id);
  return found == domains.end() ? nullptr : &found->second;
}

// Under both locks.
void dropHold(Domain& domain, std::map<uint64_t, Hold>::iterator hold) {
  setBytes(domain, hold->first, hold->second.bytes, 0);
  Mapping* mapping = findMapping(hold->second.segment);
  domain.holds.erase(hold);
  if (mapping != nullptr) dropBuffer(*mapping);
}

// Under both locks. The caller takes it out of the table.
void closeDomain(Domain& domain) {
  while (!domain.holds.empty()) dropHold(domain, domain.holds.begin());
  Mapping* area = findMapping(domain.area);
  if (area != nullptr) closeLocked(*area);
}

napi_value dmaOpen(napi_env env, napi_callback_info) {
  void* area = mmap(nullptr, kAreaBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) return throwErrno(env, errno, "mmap");
  const uint32_t mapping = adoptMapping(area, kAreaBytes);
  if (mapping == 0) {
    munmap(area, kAreaBytes);
    return throwErrno(env, EMFILE, "dmaOpen");
  }
  uint32_t id = 0;
  {
    std::lock_guard lock(tableLock);
    if (domains.size() < kDomainsMax && findEnvironment(env) != nullptr) {
      id = ++lastDomain;
      domains[id] = {env, mapping, static_cast<uint8_t*>(area), {}};
    }
  }
  if (id != 0) return makeNumber(env, id);
  closeMapping(mapping);
  return throwErrno(env, EMFILE, "dmaOpen");
}

napi_value dmaMap(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id, area = 0;
  if (!args.u32(0, "domain", &id)) return nullptr;
  {
    std::lock_guard lock(tableLock);
    if (const Domain* domain = findDomain(id)) area = domain->area;
  }
  napi_value buffer = area == 0 ? nullptr : mappingBuffer(env, area, 0, kAreaBytes);
  return buffer != nullptr ? buffer : throwErrno(env, ENXIO, "dmaMap");
}

// 1: the caller maps it now; 0: it is held already; -1 with a failure.
int holdSegment(napi_env env, uint32_t id, uint32_t segment, Failure* failure) {
  std::lock_guard lock(tableLock);
  Domain* domain = findDomain(id);
  Mapping* mapping = findMapping(segment);
  if (domain == nullptr) {
    *failure = {"dmaHold", ENXIO};
    return -1;
  }
  if (mapping == nullptr || !mapping->live || !mapping->isSegment()) {
    *failure = {"dmaHold", EBADF};
    return -1;
  }
  const auto [found, fresh] = domain->holds.try_emplace(
      mapping->start - kBase, Hold{segment, mapping->bytes, kMapping, env, false});
  if (fresh) {
    mapping->buffers++;
    return 1;
  }
  Hold& hold = found->second;
  if (hold.state != kAbandoned) return 0;
  hold.state = kMapping;
  hold.by = env;
  return 1;
}

napi_value dmaHold(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id, segment;
  if (!args.u32(0, "domain", &id) || !args.u32(1, "segment", &segment)) return nullptr;
  Failure failure;
  const int held = holdSegment(env, id, segment, &failure);
  return held < 0 ? throwErrno(env, failure.error, failure.call) : makeNumber(env, held);
}

// Whether the device reaches the segment now: false when it was closed meanwhile.
bool markSegment(uint32_t id, uint32_t segment, uint8_t access, Failure* failure) {
  std::lock_guard lock(tableLock);
  Domain* domain = findDomain(id);
  if (domain == nullptr) {
    *failure = {"dmaMark", ENXIO};
    return false;
  }
  // What is held keeps its entry in the table, closed or not.
  const Mapping* mapping = findMapping(segment);
  const auto found = mapping == nullptr || !mapping->isSegment()
                         ? domain->holds.end()
                         : domain->holds.find(mapping->start - kBase);
  if (found == domain->holds.end()) {
    *failure = {"dmaMark", EINVAL};
    return false;
  }
  Hold& hold = found->second;
  hold.state = kMapped;
  if (hold.closed) {
    countStale(*domain);
    return false;
  }
  setBytes(*domain, found->first, hold.bytes, access & (mapping->writable ? 3 : 1));
  return true;
}

napi_value dmaMark(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id, segment;
  int64_t access;
  if (!args.u32(0, "domain", &id) || !args.u32(1, "segment", &segment) ||
      !args.integer(2, "access", 1, 3, &access)) {
    return nullptr;
  }
  if (access == 2) return throwRange(env, "access must be 1 (read) or 3 (read and write)");
  Failure failure;
  const bool marked = markSegment(id, segment, static_cast<uint8_t>(access), &failure);
  if (failure.call != nullptr) return throwErrno(env, failure.error, failure.call);
  napi_value result;
  return napi_get_boolean(env, marked, &result) == napi_ok ? result : nullptr;
}

napi_value dmaStale(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  if (!args.u32(0, "domain", &id)) return nullptr;
  std::vector<double> numbers;
  bool open = false;
  {
    std::lock_guard lock(tableLock);
    if (const Domain* domain = findDomain(id)) {
      open = true;
      for (const auto& [address, hold] : domain->holds) {
        if (!isStale(hold)) continue;
        numbers.push_back(static_cast<double>(address));
        numbers.push_back(static_cast<double>(hold.bytes));
      }
    }
  }
  if (!open) return throwErrno(env, ENXIO, "dmaStale");
  return makeNumbers(env, numbers.data(), numbers.size());
}

napi_value dmaDrop(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  int64_t address;
  if (!args.u32(0, "domain", &id)) return nullptr;
  if (!args.integer(1, "address", 0, kSpaceBytes - 1, &address)) return nullptr;
  int error = 0;
  {
    Exclusive lock;
    Domain* domain = findDomain(id);
    if (domain == nullptr) {
      error = ENXIO;
    } else {
      const auto hold = domain->holds.find(static_cast<uint64_t>(address));
      if (hold == domain->holds.end()) {
        error = EINVAL;
      } else {
        dropHold(*domain, hold);
        countStale(*domain);
      }
    }
  }
  return error == 0 ? makeUndefined(env) : throwErrno(env, error, "dmaDrop");
}

napi_value dmaClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  if (!args.u32(0, "domain", &id)) return nullptr;
  int error = 0;
  {
    Exclusive lock;
    Domain* domain = findDomain(id);
    if (domain == nullptr) {
      error = ENXIO;
    } else if (domain->owner != env) {
      error = EPERM;
    } else {
      closeDomain(*domain);
      domains.erase(id);
    }
  }
  return error == 0 ? makeUndefined(env) : throwErrno(env, error, "dmaClose");
}

}  // namespace

void clearDomains(const Mapping& mapping) {
  for (auto& [id, domain] : domains) {
    const auto found = domain.holds.find(mapping.start - kBase);
    if (found == domain.holds.end()) continue;
    setBytes(domain, found->first, found->second.bytes, 0);
    found->second.closed = true;
    countStale(domain);
  }
}

void endDomains(napi_env env) {
  for (auto entry = domains.begin(); entry != domains.end();) {
    Domain& domain = entry->second;
    if (domain.owner == env) {
      closeDomain(domain);
      entry = domains.erase(entry);
      continue;
    }
    for (auto& [address, hold] : domain.holds) {
      if (hold.state == kMapping && hold.by == env) hold.state = kAbandoned;
    }
    countStale(domain);
    ++entry;
  }
}

bool initDma(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "dmaOpen", dmaOpen) &&
         defineFunction(env, exports, "dmaMap", dmaMap) &&
         defineFunction(env, exports, "dmaHold", dmaHold) &&
         defineFunction(env, exports, "dmaMark", dmaMark) &&
         defineFunction(env, exports, "dmaStale", dmaStale) &&
         defineFunction(env, exports, "dmaDrop", dmaDrop) &&
         defineFunction(env, exports, "dmaClose", dmaClose);
}

}  // namespace penstock
