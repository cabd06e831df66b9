// VFIO with a type 1 IOMMU: containers, groups, devices (Documentation/driver-api/vfio.rst,
// linux/vfio.h).
//
// Invariants
// 1. Memory is mapped for DMA as a whole live segment at IOVA = Address, for reading only where the
//    segment is not writable. The virtual address is computed here: no argument can make a device
//    reach anything else.
// 2. The range is held while the kernel pins its pages, under no lock: that may take long.
// 3. Each call works on descriptors of the calling environment only. A device's is recorded apart,
//    since it is closed before everything else (registry.cc).
// 4. What the kernel returns with capabilities is asked for twice: for its size, then for itself.

#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "descriptor.h"
#include "memory.h"
#include "registry.h"

// Newer than the headers of the oldest distribution this builds on; values are the kernel's ABI.
#ifndef VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL
#define VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL 3
#endif

namespace penstock {

namespace {

constexpr int64_t kGroupMax = INT32_MAX;
constexpr size_t kInfoBytesMax = 1 << 16;
constexpr size_t kVectorsMax = 2048;  // MSI-X has no more
constexpr size_t kNameBytesMax = 64;

// The descriptor in argument `i`, when the environment owns it (`device`: as a VFIO device).
bool ownedFd(const Args& args, size_t i, const char* name, bool device, const char* call, int* fd) {
  if (!args.fd(i, name, fd)) return false;
  if (device ? ownsDevice(args.env(), *fd) : ownsDescriptor(args.env(), *fd)) return true;
  throwErrno(args.env(), EBADF, call);
  return false;
}

// An info structure and the capabilities behind it, in whole words.
template <typename Info>
class InfoBlock {
 public:
  InfoBlock() : bytes_(sizeof(Info)) { head()->argsz = sizeof(Info); }
  Info* head() { return reinterpret_cast<Info*>(bytes_.data()); }

  // Asks again with room for everything where the first answer did not fit.
  int ask(int fd, unsigned long request) {
    if (ioctl(fd, request, head()) != 0) return errno;
    const size_t wanted = head()->argsz;
    if (wanted <= bytes_.size() || wanted > kInfoBytesMax) return 0;
    bytes_.resize(wanted);
    return ioctl(fd, request, head()) != 0 ? errno : 0;
  }

  // The capability of that id with its size at least `bytes`, or nullptr.
  const vfio_info_cap_header* find(uint32_t first, uint16_t id, size_t bytes) const {
    uint32_t at = first;
    for (int hops = 0; hops < 64 && at >= sizeof(Info); hops++) {
      if (at % 4 != 0 || at + sizeof(vfio_info_cap_header) > bytes_.size()) return nullptr;
      const auto* cap = reinterpret_cast<const vfio_info_cap_header*>(bytes_.data() + at);
      if (cap->id == id) return at + bytes <= bytes_.size() ? cap : nullptr;
      at = cap->next;
    }
    return nullptr;
  }

  // How many elements of a capability's list lie in the block.
  template <typename Element>
  size_t listed(const Element* first, size_t count) const {
    const auto offset = reinterpret_cast<const uint8_t*>(first) - bytes_.data();
    return std::min(count, (bytes_.size() - static_cast<size_t>(offset)) / sizeof(Element));
  }

 private:
  std::vector<uint8_t> bytes_;
};

bool setNumbers(napi_env env, napi_value object, const char* name,
                const std::vector<double>& values) {
  napi_value array = makeNumbers(env, values.data(), values.size());
  return array != nullptr && napi_set_named_property(env, object, name, array) == napi_ok;
}

napi_value vfioContainerOpen(napi_env env, napi_callback_info) {
  const int fd = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  if (fd < 0) return throwErrno(env, errno, "open");
  if (ioctl(fd, VFIO_GET_API_VERSION) != VFIO_API_VERSION) {
    close(fd);
    return throwErrno(env, EPROTO, "ioctl(VFIO_GET_API_VERSION)");
  }
  return giveDescriptor(env, fd);
}

napi_value vfioGroupOpen(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t group;
  if (!args.integer(0, "group", 0, kGroupMax, &group)) return nullptr;
  char path[32];
  snprintf(path, sizeof path, "/dev/vfio/%lld", static_cast<long long>(group));
  const int fd = open(path, O_RDWR | O_CLOEXEC);
  return fd < 0 ? throwErrno(env, errno, "open") : giveDescriptor(env, fd);
}

napi_value vfioGroupStatus(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!ownedFd(args, 0, "group", false, "vfioGroupStatus", &fd)) return nullptr;
  vfio_group_status status = {};
  status.argsz = sizeof status;
  if (ioctl(fd, VFIO_GROUP_GET_STATUS, &status) != 0) {
    return throwErrno(env, errno, "ioctl(VFIO_GROUP_GET_STATUS)");
  }
  return makeNumber(env, status.flags);
}

napi_value vfioGroupAttach(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int group, container;
  if (!ownedFd(args, 0, "group", false, "vfioGroupAttach", &group) ||
      !ownedFd(args, 1, "container", false, "vfioGroupAttach", &container)) {
    return nullptr;
  }
  if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) != 0) {
    return throwErrno(env, errno, "ioctl(VFIO_GROUP_SET_CONTAINER)");
  }
  return makeUndefined(env);
}

napi_value vfioSetIommu(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!ownedFd(args, 0, "container", false, "vfioSetIommu", &fd)) return nullptr;
  int error = ENOTSUP;
  for (const int type : {VFIO_TYPE1v2_IOMMU, VFIO_TYPE1_IOMMU}) {
    const int known = ioctl(fd, VFIO_CHECK_EXTENSION, type);
    if (known <= 0) continue;
    if (ioctl(fd, VFIO_SET_IOMMU, type) == 0) return makeNumber(env, type);
    error = errno;
  }
  return throwErrno(env, error, "ioctl(VFIO_SET_IOMMU)");
}

napi_value vfioIommuInfo(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!ownedFd(args, 0, "container", false, "vfioIommuInfo", &fd)) return nullptr;
  InfoBlock<vfio_iommu_type1_info> block;
  if (int error = block.ask(fd, VFIO_IOMMU_GET_INFO)) {
    return throwErrno(env, error, "ioctl(VFIO_IOMMU_GET_INFO)");
  }
  const auto* head = block.head();
  const uint32_t first = (head->flags & VFIO_IOMMU_INFO_CAPS) != 0 ? head->cap_offset : 0;
  using Ranges = vfio_iommu_type1_info_cap_iova_range;
  std::vector<double> ranges;
  const auto* found = reinterpret_cast<const Ranges*>(
      block.find(first, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, sizeof(Ranges)));
  for (size_t i = 0; found != nullptr && i < block.listed(found->iova_ranges, found->nr_iovas);
       i++) {
    ranges.push_back(static_cast<double>(found->iova_ranges[i].start));
    ranges.push_back(static_cast<double>(found->iova_ranges[i].end));
  }
  // A header and one word (the number of mappings left).
  const vfio_info_cap_header* avail =
      block.find(first, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, sizeof(vfio_info_cap_header) + 4);
  uint32_t left = 0;
  if (avail != nullptr) memcpy(&left, avail + 1, sizeof left);
  const bool sized = (head->flags & VFIO_IOMMU_INFO_PGSIZES) != 0;
  napi_value result;
  if (napi_create_object(env, &result) != napi_ok ||
      !setNumber(env, result, "pageSizes", sized ? static_cast<double>(head->iova_pgsizes) : 0) ||
      !setNumber(env, result, "mappingsLeft", avail != nullptr ? left : -1.0) ||
      !setNumbers(env, result, "ranges", ranges)) {
    return nullptr;
  }
  return result;
}

// Holds the live segment and says where it is; false when there is none.
bool holdRange(uint32_t id, vfio_iommu_type1_dma_map* map) {
  std::lock_guard lock(tableLock);
  Mapping* mapping = findMapping(id);
  if (mapping == nullptr || !mapping->live || !mapping->isSegment()) return false;
  mapping->buffers++;
  map->flags = VFIO_DMA_MAP_FLAG_READ | (mapping->writable ? VFIO_DMA_MAP_FLAG_WRITE : 0u);
  map->vaddr = mapping->start;
  map->iova = mapping->start - kBase;
  map->size = mapping->bytes;
  return true;
}

napi_value vfioMap(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  uint32_t id;
  if (!args.u32(1, "segment", &id)) return nullptr;
  if (!ownedFd(args, 0, "container", false, "vfioMap", &fd)) return nullptr;
  vfio_iommu_type1_dma_map map = {};
  map.argsz = sizeof map;
  if (!holdRange(id, &map)) return throwErrno(env, EBADF, "vfioMap(segment)");
  const int error = ioctl(fd, VFIO_IOMMU_MAP_DMA, &map) != 0 ? errno : 0;
  {
    Exclusive lock;
    if (Mapping* mapping = findMapping(id)) dropBuffer(*mapping);
  }
  return error == 0 ? makeUndefined(env) : throwErrno(env, error, "ioctl(VFIO_IOMMU_MAP_DMA)");
}

napi_value vfioUnmap(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  int64_t address, bytes;
  if (!args.integer(1, "address", 0, kSpaceBytes - 1, &address) ||
      !args.integer(2, "bytes", 1, kSpaceBytes, &bytes) ||
      !ownedFd(args, 0, "container", false, "vfioUnmap", &fd)) {
    return nullptr;
  }
  vfio_iommu_type1_dma_unmap unmap = {};
  unmap.argsz = sizeof unmap;
  unmap.iova = static_cast<uint64_t>(address);
  unmap.size = static_cast<uint64_t>(bytes);
  if (ioctl(fd, VFIO_IOMMU_UNMAP_DMA, &unmap) != 0) {
    return throwErrno(env, errno, "ioctl(VFIO_IOMMU_UNMAP_DMA)");
  }
  return makeNumber(env, static_cast<double>(unmap.size));
}

napi_value vfioDeviceOpen(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int group;
  std::string name;
  if (!args.string(1, "name", kNameBytesMax, &name) ||
      !ownedFd(args, 0, "group", false, "vfioDeviceOpen", &group)) {
    return nullptr;
  }
  const int fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name.c_str());
  if (fd < 0) return throwErrno(env, errno, "ioctl(VFIO_GROUP_GET_DEVICE_FD)");
  if (!ownDevice(env, fd) && !ownsDevice(env, fd)) {
    close(fd);
    return throwErrno(env, ENOMEM, "ownDevice");
  }
  return makeNumber(env, fd);
}

napi_value vfioDeviceInfo(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  if (!ownedFd(args, 0, "device", true, "vfioDeviceInfo", &fd)) return nullptr;
  vfio_device_info facts = {};
  facts.argsz = sizeof facts;
  if (ioctl(fd, VFIO_DEVICE_GET_INFO, &facts) != 0) {
    return throwErrno(env, errno, "ioctl(VFIO_DEVICE_GET_INFO)");
  }
  const double values[] = {static_cast<double>(facts.flags), static_cast<double>(facts.num_regions),
                           static_cast<double>(facts.num_irqs)};
  return makeNumbers(env, values, 3);
}

napi_value vfioRegionInfo(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  uint32_t index;
  if (!args.u32(1, "index", &index)) return nullptr;
  if (!ownedFd(args, 0, "device", true, "vfioRegionInfo", &fd)) return nullptr;
  InfoBlock<vfio_region_info> block;
  block.head()->index = index;
  if (int error = block.ask(fd, VFIO_DEVICE_GET_REGION_INFO)) {
    return throwErrno(env, error, "ioctl(VFIO_DEVICE_GET_REGION_INFO)");
  }
  const auto* head = block.head();
  const uint32_t first = (head->flags & VFIO_REGION_INFO_FLAG_CAPS) != 0 ? head->cap_offset : 0;
  using Sparse = vfio_region_info_cap_sparse_mmap;
  const auto* sparse = reinterpret_cast<const Sparse*>(
      block.find(first, VFIO_REGION_INFO_CAP_SPARSE_MMAP, sizeof(Sparse)));
  std::vector<double> areas;
  for (size_t i = 0; sparse != nullptr && i < block.listed(sparse->areas, sparse->nr_areas); i++) {
    areas.push_back(static_cast<double>(sparse->areas[i].offset));
    areas.push_back(static_cast<double>(sparse->areas[i].size));
  }
  const bool msix = block.find(first, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
                               sizeof(vfio_info_cap_header)) != nullptr;
  napi_value result;
  if (napi_create_object(env, &result) != napi_ok ||
      !setNumber(env, result, "flags", head->flags) ||
      !setNumber(env, result, "bytes", static_cast<double>(head->size)) ||
      !setNumber(env, result, "offset", static_cast<double>(head->offset)) ||
      !setNumber(env, result, "sparse", sparse != nullptr ? 1 : 0) ||
      !setNumber(env, result, "msixMappable", msix ? 1 : 0) ||
      !setNumbers(env, result, "areas", areas)) {
    return nullptr;
  }
  return result;
}

napi_value vfioIrqInfo(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  uint32_t index;
  if (!args.u32(1, "index", &index)) return nullptr;
  if (!ownedFd(args, 0, "device", true, "vfioIrqInfo", &fd)) return nullptr;
  vfio_irq_info facts = {};
  facts.argsz = sizeof facts;
  facts.index = index;
  if (ioctl(fd, VFIO_DEVICE_GET_IRQ_INFO, &facts) != 0) {
    return throwErrno(env, errno, "ioctl(VFIO_DEVICE_GET_IRQ_INFO)");
  }
  const double values[] = {static_cast<double>(facts.flags), static_cast<double>(facts.count)};
  return makeNumbers(env, values, 2);
}

napi_value vfioSetIrqs(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  uint32_t index, start;
  std::vector<int64_t> events(kVectorsMax);
  size_t count;
  if (!args.u32(1, "index", &index) || !args.u32(2, "start", &start) ||
      !args.integers(3, "eventfds", -1, INT32_MAX, events.data(), kVectorsMax, &count) ||
      !ownedFd(args, 0, "device", true, "vfioSetIrqs", &fd)) {
    return nullptr;
  }
  std::vector<uint8_t> bytes(sizeof(vfio_irq_set) + count * sizeof(int32_t));
  auto* set = reinterpret_cast<vfio_irq_set*>(bytes.data());
  set->argsz = static_cast<uint32_t>(bytes.size());
  set->flags = VFIO_IRQ_SET_ACTION_TRIGGER;
  set->flags |= count == 0 ? VFIO_IRQ_SET_DATA_NONE : VFIO_IRQ_SET_DATA_EVENTFD;
  set->index = index;
  set->start = start;
  set->count = static_cast<uint32_t>(count);
  for (size_t i = 0; i < count; i++) {
    const int32_t event = static_cast<int32_t>(events[i]);
    memcpy(set->data + i * sizeof event, &event, sizeof event);
  }
  const int result = ioctl(fd, VFIO_DEVICE_SET_IRQS, set);
  if (result == 0) return makeUndefined(env);
  // A positive result is how many vectors could have been had.
  return throwErrno(env, result > 0 ? ENOSPC : errno, "ioctl(VFIO_DEVICE_SET_IRQS)");
}

napi_value vfioUnmaskIrq(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int fd;
  uint32_t index;
  if (!args.u32(1, "index", &index)) return nullptr;
  if (!ownedFd(args, 0, "device", true, "vfioUnmaskIrq", &fd)) return nullptr;
  vfio_irq_set set = {};
  set.argsz = sizeof set;
  set.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
  set.index = index;
  set.count = 1;
  if (ioctl(fd, VFIO_DEVICE_SET_IRQS, &set) != 0) {
    return throwErrno(env, errno, "ioctl(VFIO_DEVICE_SET_IRQS)");
  }
  return makeUndefined(env);
}

}  // namespace

bool initVfio(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "vfioContainerOpen", vfioContainerOpen) &&
         defineFunction(env, exports, "vfioGroupOpen", vfioGroupOpen) &&
         defineFunction(env, exports, "vfioGroupStatus", vfioGroupStatus) &&
         defineFunction(env, exports, "vfioGroupAttach", vfioGroupAttach) &&
         defineFunction(env, exports, "vfioSetIommu", vfioSetIommu) &&
         defineFunction(env, exports, "vfioIommuInfo", vfioIommuInfo) &&
         defineFunction(env, exports, "vfioMap", vfioMap) &&
         defineFunction(env, exports, "vfioUnmap", vfioUnmap) &&
         defineFunction(env, exports, "vfioDeviceOpen", vfioDeviceOpen) &&
         defineFunction(env, exports, "vfioDeviceInfo", vfioDeviceInfo) &&
         defineFunction(env, exports, "vfioRegionInfo", vfioRegionInfo) &&
         defineFunction(env, exports, "vfioIrqInfo", vfioIrqInfo) &&
         defineFunction(env, exports, "vfioSetIrqs", vfioSetIrqs) &&
         defineFunction(env, exports, "vfioUnmaskIrq", vfioUnmaskIrq);
}

}  // namespace penstock
