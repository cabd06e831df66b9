// Segments as JavaScript sees them once they are there: look up, describe, view, hand out, close.
// See segment.cc for how they come to be, registry.cc for the rules.

#include "memory.h"

#include <fcntl.h>

#include <cerrno>
#include <string>
#include <vector>

#include "descriptor.h"
#include "registry.h"
#include "sigsegv.h"

namespace penstock {

namespace {

napi_value memoryJoin(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t wanted;
  if (!args.integer(0, "domain", 1, kDomains - 1, &wanted)) return nullptr;
  bool late;
  {
    std::lock_guard lock(tableLock);
    late = registry.used;
    if (!late) registry.domain = static_cast<uint32_t>(wanted);
  }
  return late ? throwErrno(env, EBUSY, "memoryJoin") : makeUndefined(env);
}

napi_value memoryDomain(napi_env env, napi_callback_info) {
  uint32_t domain;
  {
    std::lock_guard lock(tableLock);
    domain = registry.domain;
  }
  return makeNumber(env, domain);
}

napi_value memoryDomainName(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t domain;
  std::string name;
  if (!args.integer(0, "domain", 1, kDomains - 1, &domain)) return nullptr;
  if (!args.string(1, "name", kDomainNameBytes, &name)) return nullptr;
  {
    std::lock_guard lock(tableLock);
    nameDomain(static_cast<uint32_t>(domain), name.data(), name.size());
  }
  return makeUndefined(env);
}

// Whether a range within the domain's slot is held. Ranges of closed segments stay in the table as
// long as an ArrayBuffer or a DMA domain is left over them, and for good where a device may still
// write.
bool slotHeld(uint32_t domain) {
  std::lock_guard lock(tableLock);
  const auto first = registry.ranges.lower_bound(domain * kSlotBytes);
  return first != registry.ranges.end() && first->first < (domain + 1) * kSlotBytes;
}

napi_value memorySlotHeld(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t domain;
  if (!args.integer(0, "domain", 1, kDomains - 1, &domain)) return nullptr;
  napi_value result;
  const bool held = slotHeld(static_cast<uint32_t>(domain));
  return napi_get_boolean(env, held, &result) == napi_ok ? result : nullptr;
}

// The live segment of that id, or nullptr. Under tableLock.
Mapping* findSegment(uint32_t id) {
  Mapping* mapping = findMapping(id);
  const bool segment = mapping != nullptr && mapping->live && mapping->isSegment();
  return segment ? mapping : nullptr;
}

napi_value segmentInfo(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  if (!args.u32(0, "segment", &id)) return nullptr;
  Mapping facts;
  {
    std::lock_guard lock(tableLock);
    if (const Mapping* mapping = findSegment(id)) facts = *mapping;
  }
  if (facts.id == 0) return throwErrno(env, EBADF, "segmentInfo");
  napi_value result, writable;
  napi_create_object(env, &result);
  setNumber(env, result, "id", facts.id);
  setNumber(env, result, "address", static_cast<double>(facts.start - kBase));
  setNumber(env, result, "bytes", static_cast<double>(facts.bytes));
  setNumber(env, result, "backedBytes", static_cast<double>(facts.backedBytes));
  setNumber(env, result, "pageBytes", static_cast<double>(facts.pageBytes));
  setNumber(env, result, "kind", facts.kind);
  setNumber(env, result, "companion", static_cast<double>(facts.companion));
  napi_get_boolean(env, facts.writable, &writable);
  napi_set_named_property(env, result, "writable", writable);
  return result;
}

// Id of the live segment over the address, or 0.
uint32_t findAddress(uint64_t address) {
  std::lock_guard lock(tableLock);
  auto it = registry.ranges.upper_bound(address);
  if (it == registry.ranges.begin()) return 0;
  --it;
  if (address >= it->first + it->second) return 0;
  for (const Mapping& mapping : registry.mappings) {
    if (mapping.id != 0 && mapping.live && mapping.start == kBase + it->first) return mapping.id;
  }
  return 0;
}

napi_value segmentFind(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t address;
  if (!args.integer(0, "address", 0, kSpaceBytes - 1, &address)) return nullptr;
  return makeNumber(env, findAddress(address));
}

napi_value segmentIds(napi_env env, napi_callback_info) {
  std::vector<uint32_t> ids;
  {
    std::lock_guard lock(tableLock);
    for (const Mapping& mapping : registry.mappings) {
      if (mapping.id != 0 && mapping.live && mapping.isSegment()) ids.push_back(mapping.id);
    }
  }
  napi_value result;
  if (napi_create_array_with_length(env, ids.size(), &result) != napi_ok) return nullptr;
  for (uint32_t i = 0; i < ids.size(); i++) {
    napi_set_element(env, result, i, makeNumber(env, ids[i]));
  }
  return result;
}

napi_value setSegmentCompanion(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  int64_t address;
  if (!args.u32(0, "segment", &id)) return nullptr;
  if (!args.integer(1, "address", 0, kSpaceBytes - 1, &address)) return nullptr;
  Mapping* mapping;
  {
    std::lock_guard lock(tableLock);
    mapping = findSegment(id);
    if (mapping != nullptr) mapping->companion = address;
  }
  if (mapping == nullptr) return throwErrno(env, EBADF, "setSegmentCompanion");
  return makeUndefined(env);
}

napi_value segmentFd(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  if (!args.u32(0, "segment", &id)) return nullptr;
  Failure failure;
  int copy = -1;
  {
    std::lock_guard lock(tableLock);
    const Mapping* mapping = findSegment(id);
    if (mapping == nullptr) {
      failure = {"segmentFd", EBADF};
    } else if (mapping->kind != kShared && mapping->kind != kDevice) {
      failure = {"segmentFd", EPERM};
    } else {
      const int fd = mapping->kind == kShared ? mapping->readOnlyFd : mapping->fd;
      copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
      if (copy < 0) failure = {"fcntl(F_DUPFD)", errno};
    }
  }
  if (copy < 0) return throwErrno(env, failure.error, failure.call);
  return giveDescriptor(env, copy);
}

// Takes this environment's references to ArrayBuffers over segments that are gone, for deletion,
// and the one of segment `id` apart.
napi_ref takeReferences(napi_env env, uint32_t id, std::vector<napi_ref>* stale) {
  auto& buffers = registry.environments[env].buffers;
  napi_ref own = nullptr;
  for (auto it = buffers.begin(); it != buffers.end();) {
    if (it->first == id) own = it->second;
    else if (findSegment(it->first) == nullptr) stale->push_back(it->second);
    else {
      ++it;
      continue;
    }
    it = buffers.erase(it);
  }
  return own;
}

napi_value segmentBuffer(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  uint64_t start = 0, bytes = 0;
  if (!args.u32(0, "segment", &id)) return nullptr;
  napi_ref reference = nullptr;
  std::vector<napi_ref> stale;
  {
    std::lock_guard lock(tableLock);
    if (Mapping* mapping = findSegment(id)) {
      start = mapping->start;
      bytes = mapping->bytes;
      // Held by count while the ArrayBuffer is made, so that a close meanwhile keeps the range.
      mapping->buffers++;
      reference = takeReferences(env, id, &stale);
    }
  }
  if (start == 0) return throwErrno(env, EBADF, "segmentBuffer");
  for (napi_ref old : stale) napi_delete_reference(env, old);
  napi_value buffer = nullptr;
  if (reference != nullptr) {
    napi_get_reference_value(env, reference, &buffer);
    if (buffer == nullptr) napi_delete_reference(env, reference);
  }
  if (buffer == nullptr) {
    buffer = externalBuffer(env, id, start, bytes);
    reference = nullptr;
    if (buffer != nullptr) napi_create_reference(env, buffer, 0, &reference);
  }
  Exclusive lock;
  if (reference != nullptr) registry.environments[env].buffers[id] = reference;
  Mapping* mapping = findMapping(id);
  if (mapping != nullptr) dropBuffer(*mapping);
  return buffer;
}

napi_value segmentClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  uint32_t id;
  if (!args.u32(0, "segment", &id)) return nullptr;
  std::vector<napi_ref> references;
  Mapping* mapping;
  {
    Exclusive lock;
    mapping = findSegment(id);
    if (mapping != nullptr) {
      const napi_ref own = takeReferences(env, id, &references);
      if (own != nullptr) references.push_back(own);
      closeLocked(*mapping);
    }
  }
  for (napi_ref reference : references) napi_delete_reference(env, reference);
  return mapping == nullptr ? throwErrno(env, EBADF, "segmentClose") : makeUndefined(env);
}

}  // namespace

bool initMemory(napi_env env, napi_value exports) {
  return openEnvironment(env) && initStatus(env, exports) && initObject(env, exports) &&
         initSegment(env, exports) &&
         defineFunction(env, exports, "memoryJoin", memoryJoin) &&
         defineFunction(env, exports, "memoryDomain", memoryDomain) &&
         defineFunction(env, exports, "memoryDomainName", memoryDomainName) &&
         defineFunction(env, exports, "memorySlotHeld", memorySlotHeld) &&
         defineFunction(env, exports, "segmentInfo", segmentInfo) &&
         defineFunction(env, exports, "segmentFind", segmentFind) &&
         defineFunction(env, exports, "segmentIds", segmentIds) &&
         defineFunction(env, exports, "setSegmentCompanion", setSegmentCompanion) &&
         defineFunction(env, exports, "segmentFd", segmentFd) &&
         defineFunction(env, exports, "segmentBuffer", segmentBuffer) &&
         defineFunction(env, exports, "segmentClose", segmentClose);
}

}  // namespace penstock
