// io_uring: setup, ring mapping, enter, register. The rings are driven from TypeScript (lib/uring).
//
// Invariants
// 1. Ring mappings are adopted by the registry (registry.cc): closing a ring replaces their
//    pages, so a stale view of a ring never faults.
// 2. `enter` takes no arguments: what it does, and to which ring, stands in the environment's
//    control block; its result goes there too. One function serves all rings of an environment:
//    V8 calls a function it knows much faster than one of several. A ring that is not there is
//    EBADF.
// 3. A ring is used only by the environment (thread) that made it, and closed when that ends: the
//    kernel is waited for first, and where that fails no address in use is ever given out again.
// 4. io_uring_register reads and writes through pointers: only opcodes whose sizes are known here
//    pass.

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu.h"
#include "memory.h"
#include "ring.h"

// Newer than the headers of the oldest distribution this builds on; values are the kernel's ABI.
#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

namespace penstock {

namespace {

// An environment's rings. Used by its thread only.
struct Room {
  alignas(64) Control control = {};
  std::vector<Ring*> rings;  // by id - 1; nullptr: closed
  int references = 0;        // environment, function, control buffer
};

constexpr uint32_t kEnterFlags =
    IORING_ENTER_GETEVENTS | IORING_ENTER_SQ_WAKEUP | IORING_ENTER_SQ_WAIT;

int setup(uint32_t entries, io_uring_params* params) {
  return static_cast<int>(syscall(__NR_io_uring_setup, entries, params));
}

void dropReference(Room* room) {
  if (--room->references == 0) delete room;
}

void onEnvironmentEnd(void* data) {
  Room* room = static_cast<Room*>(data);
  for (Ring* ring : room->rings) {
    if (ring == nullptr) continue;
    // The kernel may still use memory for what is in flight: addresses it could not be waited out
    // of are never given to anybody again.
    if (!drainRing(ring)) retireAddresses();
    closeRing(ring);
  }
  room->rings.clear();
  dropReference(room);
}


napi_value enter(napi_env env, napi_callback_info info) {
  void* data;
  if (napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data) != napi_ok) return nullptr;
  Room* room = static_cast<Room*>(data);
  Control& control = room->control;
  const uint32_t index = control.ring - 1;
  Ring* ring = index < room->rings.size() ? room->rings[index] : nullptr;
  if (ring == nullptr) {
    control.result = -EBADF;
    return nullptr;
  }
  const uint32_t flags = (control.flags & kEnterFlags) | ring->enterFlags;
  control.result = static_cast<int32_t>(enterOnce(ring, control, flags));
  if (control.stamp != 0) {
    const uint64_t now = clockTicks();
    control.ticksLo = static_cast<uint32_t>(now);
    control.ticksHi = static_cast<uint32_t>(now >> 32);
    control.stamps++;
  }
  return nullptr;
}

void onRoomUserGone(napi_env, void* data, void* hint) {
  dropReference(static_cast<Room*>(hint != nullptr ? hint : data));
}

// The calling environment's rings: every function here is bound to them.
Room* roomOf(const Args& args) { return static_cast<Room*>(args.data()); }

Ring* findRing(const Args& args, const char* call) {
  uint32_t id;
  if (!args.u32(0, "ring", &id)) return nullptr;
  const auto& rings = roomOf(args)->rings;
  if (id != 0 && id <= rings.size() && rings[id - 1] != nullptr) return rings[id - 1];
  throwErrno(args.env(), EBADF, call);
  return nullptr;
}

// Maps one of the ring's areas and gives it to the registry; 0 with errno when that fails.
uint32_t mapArea(int fd, uint64_t bytes, uint64_t offset, uint8_t** start) {
  const uint64_t whole = (bytes + 4095) / 4096 * 4096;
  void* at = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                  static_cast<off_t>(offset));
  if (at == MAP_FAILED) return 0;
  const uint32_t id = adoptMapping(at, whole);
  if (id == 0) {
    munmap(at, whole);
    errno = EMFILE;
  }
  *start = static_cast<uint8_t*>(at);
  return id;
}

napi_value describeRing(napi_env env, Ring* ring, const io_uring_params& params,
                        uint64_t ringBytes, uint64_t sqeBytes) {
  napi_value result;
  napi_value ringBuffer = mappingBuffer(env, ring->rings, 0, ringBytes);
  napi_value sqeBuffer = mappingBuffer(env, ring->sqes, 0, sqeBytes);
  if (ringBuffer == nullptr || sqeBuffer == nullptr) return nullptr;
  napi_create_object(env, &result);
  napi_set_named_property(env, result, "rings", ringBuffer);
  napi_set_named_property(env, result, "sqes", sqeBuffer);
  setNumber(env, result, "id", ring->id);
  setNumber(env, result, "fd", ring->fd);
  setNumber(env, result, "features", params.features);
  setNumber(env, result, "flags", params.flags);
  setNumber(env, result, "sqEntries", params.sq_entries);
  setNumber(env, result, "cqEntries", params.cq_entries);
  setNumber(env, result, "sqHead", params.sq_off.head);
  setNumber(env, result, "sqTail", params.sq_off.tail);
  setNumber(env, result, "sqMask", params.sq_off.ring_mask);
  setNumber(env, result, "sqFlags", params.sq_off.flags);
  setNumber(env, result, "sqDropped", params.sq_off.dropped);
  setNumber(env, result, "sqArray", params.sq_off.array);
  setNumber(env, result, "cqHead", params.cq_off.head);
  setNumber(env, result, "cqTail", params.cq_off.tail);
  setNumber(env, result, "cqMask", params.cq_off.ring_mask);
  setNumber(env, result, "cqOverflow", params.cq_off.overflow);
  setNumber(env, result, "cqFlags", params.cq_off.flags);
  setNumber(env, result, "cqes", params.cq_off.cqes);
  return result;
}

napi_value uringSetup(napi_env env, napi_callback_info info) {
  Args args(env, info);
  int64_t entries, flags, cqEntries, cpu, idle, attach;
  if (!args.property(0, "entries", 1, 32768, 0, &entries)) return nullptr;
  if (entries == 0) return throwRange(env, "entries must be from 1 to 32768");
  if (!args.property(0, "flags", 0, UINT32_MAX, 0, &flags)) return nullptr;
  if (!args.property(0, "cqEntries", 1, 65536, 0, &cqEntries)) return nullptr;
  if (!args.property(0, "sqThreadCpu", 0, 65535, -1, &cpu)) return nullptr;
  if (!args.property(0, "sqThreadIdleMs", 0, 3600000, 0, &idle)) return nullptr;
  if (!args.property(0, "attach", 1, UINT32_MAX, 0, &attach)) return nullptr;
  // What this file does not map or number correctly is refused: NO_MMAP, REGISTERED_FD_ONLY.
  constexpr uint32_t refused = (1u << 14) | (1u << 15);
  if ((flags & refused) != 0) return throwRange(env, "flags has bits this addon does not support");
  io_uring_params params = {};
  params.flags = static_cast<uint32_t>(flags);
  if (cqEntries != 0) {
    params.flags |= IORING_SETUP_CQSIZE;
    params.cq_entries = static_cast<uint32_t>(cqEntries);
  }
  if (cpu >= 0) {
    params.flags |= IORING_SETUP_SQ_AFF;
    params.sq_thread_cpu = static_cast<uint32_t>(cpu);
  }
  params.sq_thread_idle = static_cast<uint32_t>(idle);
  if (attach != 0) {
    const auto& rings = roomOf(args)->rings;
    const size_t index = static_cast<size_t>(attach - 1);
    if (index >= rings.size() || rings[index] == nullptr) {
      return throwErrno(env, EBADF, "io_uring_setup");
    }
    params.flags |= IORING_SETUP_ATTACH_WQ;
    params.wq_fd = static_cast<uint32_t>(rings[index]->fd);
  }
  const int fd = setup(static_cast<uint32_t>(entries), &params);
  if (fd < 0) return throwErrno(env, errno, "io_uring_setup");
  if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0) {
    close(fd);
    return throwErrno(env, ENOSYS, "io_uring_setup(SINGLE_MMAP)");
  }
  const uint64_t cqeSize = (params.flags & IORING_SETUP_CQE32) != 0 ? 32 : 16;
  const uint64_t sqeSize = (params.flags & IORING_SETUP_SQE128) != 0 ? 128 : 64;
  const uint64_t arrayEnd = (params.flags & IORING_SETUP_NO_SQARRAY) != 0
                                ? 0
                                : params.sq_off.array + params.sq_entries * 4ull;
  const uint64_t ringBytes =
      std::max(arrayEnd, params.cq_off.cqes + params.cq_entries * cqeSize);
  const uint64_t sqeBytes = params.sq_entries * sqeSize;
  Ring* ring = new Ring;
  ring->fd = ring->enterFd = fd;
  ring->extArg = (params.features & IORING_FEAT_EXT_ARG) != 0;
  uint8_t* words;
  uint8_t* entryWords;
  ring->rings = mapArea(fd, ringBytes, IORING_OFF_SQ_RING, &words);
  if (ring->rings != 0) ring->sqes = mapArea(fd, sqeBytes, IORING_OFF_SQES, &entryWords);
  if (ring->sqes == 0) {
    const int error = errno;
    closeRing(ring);
    return throwErrno(env, error, "mmap");
  }
  // With SQPOLL what is published counts as submitted.
  const bool polled = (params.flags & IORING_SETUP_SQPOLL) != 0;
  const uint32_t submitted = polled ? params.sq_off.tail : params.sq_off.head;
  ring->submitted = reinterpret_cast<uint32_t*>(words + submitted);
  ring->reaped = reinterpret_cast<uint32_t*>(words + params.cq_off.head);
  ring->completed = reinterpret_cast<uint32_t*>(words + params.cq_off.tail);
  // A registered ring descriptor saves the descriptor look-up of every call; without it fd serves.
  io_uring_rsrc_update update = {};
  update.offset = UINT32_MAX;
  update.data = static_cast<uint64_t>(fd);
  if (registerCall(fd, IORING_REGISTER_RING_FDS, &update, 1) == 1) {
    ring->enterFd = static_cast<int>(update.offset);
    ring->enterFlags = IORING_ENTER_REGISTERED_RING;
  }
  auto& rings = roomOf(args)->rings;
  size_t index = 0;
  while (index < rings.size() && rings[index] != nullptr) index++;
  if (index == rings.size()) rings.push_back(nullptr);
  ring->id = static_cast<uint32_t>(index + 1);
  napi_value result = describeRing(env, ring, params, ringBytes, sqeBytes);
  if (result == nullptr) {
    closeRing(ring);
    bool pending = false;
    napi_is_exception_pending(env, &pending);
    if (!pending) throwErrno(env, ENOMEM, "uringSetup");
    return nullptr;
  }
  rings[index] = ring;
  return result;
}

// Bytes that io_uring_register may touch behind `argument`; -1: this opcode does not pass here.
int64_t argumentBytes(uint32_t opcode, uint64_t count) {
  switch (opcode) {
    case IORING_UNREGISTER_BUFFERS:
    case IORING_UNREGISTER_FILES:
    case IORING_UNREGISTER_EVENTFD:
    case IORING_REGISTER_ENABLE_RINGS:
      return 0;
    case IORING_REGISTER_FILES:
      return static_cast<int64_t>(count * 4);
    case IORING_REGISTER_EVENTFD:
    case IORING_REGISTER_EVENTFD_ASYNC:
      return 4;
    case IORING_REGISTER_FILES_UPDATE:
      return static_cast<int64_t>(4 + count * 4);  // [offset, fd …]; rebuilt below
    case IORING_REGISTER_PROBE:
      return static_cast<int64_t>(16 + count * 8);
    case IORING_REGISTER_IOWQ_MAX_WORKERS:
      return 8;
    case IORING_REGISTER_SYNC_CANCEL:
      return 64;
    default:
      return -1;
  }
}

napi_value uringRegister(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Ring* ring = findRing(args, "io_uring_register");
  if (ring == nullptr) return nullptr;
  uint32_t opcode, count;
  if (!args.u32(1, "opcode", &opcode) || !args.u32(3, "count", &count)) return nullptr;
  const int64_t needed = argumentBytes(opcode, count);
  if (needed < 0) return throwRange(env, "opcode %u is not one this addon passes on", opcode);
  void* argument = nullptr;
  size_t bytes = 0;
  if (!args.absent(2) && !args.view(2, "argument", 0, &argument, &bytes)) return nullptr;
  if (bytes < static_cast<size_t>(needed)) {
    return throwRange(env, "argument must have at least %lld bytes for opcode %u, not %zu",
                      static_cast<long long>(needed), opcode, bytes);
  }
  if (opcode == IORING_REGISTER_FILES_UPDATE) {
    io_uring_files_update update = {};
    memcpy(&update.offset, argument, 4);
    update.fds = reinterpret_cast<uint64_t>(static_cast<uint8_t*>(argument) + 4);
    return makeNumber(env, registerCall(ring->fd, opcode, &update, count));
  }
  if (needed == 0) argument = nullptr;
  return makeNumber(env, registerCall(ring->fd, opcode, argument, count));
}

napi_value uringRegisterBuffers(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Ring* ring = findRing(args, "io_uring_register");
  if (ring == nullptr) return nullptr;
  int64_t offset;
  void* data;
  size_t bytes;
  if (!args.integer(1, "offset", -1, 16383, &offset)) return nullptr;
  if (!args.view(2, "entries", 4, &data, &bytes)) return nullptr;
  const uint32_t* words = static_cast<const uint32_t*>(data);
  if (offset < 0) {
    if (bytes < 4) return throwRange(env, "entries must hold the number of slots");
    io_uring_rsrc_register table = {};
    table.nr = words[0];
    table.flags = IORING_RSRC_REGISTER_SPARSE;
    return makeNumber(env, registerCall(ring->fd, IORING_REGISTER_BUFFERS2, &table, sizeof table));
  }
  const size_t count = bytes / 16;
  if (count == 0 || count > 1024) return throwRange(env, "entries must be 1 to 1024 of 4 words");
  std::vector<iovec> vectors(count);
  SegmentLock lock;
  for (size_t i = 0; i < count; i++) {
    const uint64_t address = words[4 * i] | static_cast<uint64_t>(words[4 * i + 1]) << 32;
    const uint64_t length = words[4 * i + 2];
    void* start = length == 0 ? nullptr : resolve(address, length, false);
    if (length != 0 && start == nullptr) return throwErrno(env, EFAULT, "uringRegisterBuffers");
    vectors[i] = {start, length};
  }
  io_uring_rsrc_update2 update = {};
  update.offset = static_cast<uint32_t>(offset);
  update.data = reinterpret_cast<uint64_t>(vectors.data());
  update.nr = static_cast<uint32_t>(count);
  return makeNumber(env,
                    registerCall(ring->fd, IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof update));
}

napi_value uringClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Ring* ring = findRing(args, "uringClose");
  if (ring == nullptr) return nullptr;
  roomOf(args)->rings[ring->id - 1] = nullptr;
  closeRing(ring);
  return makeUndefined(env);
}

bool defineBound(napi_env env, napi_value exports, const char* name, napi_callback callback,
                 Room* room) {
  napi_value function;
  return napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, room, &function) == napi_ok &&
         napi_set_named_property(env, exports, name, function) == napi_ok;
}

}  // namespace

bool initUring(napi_env env, napi_value exports) {
  Room* room = new Room;
  room->references = 1;
  if (napi_add_env_cleanup_hook(env, onEnvironmentEnd, room) != napi_ok) {
    delete room;
    return false;
  }
  napi_value control;
  if (napi_create_external_arraybuffer(env, &room->control, sizeof(Control), onRoomUserGone, room,
                                       &control) != napi_ok) {
    return false;
  }
  room->references++;
  return napi_set_named_property(env, exports, "uringControl", control) == napi_ok &&
         napi_add_finalizer(env, exports, room, onRoomUserGone, nullptr, nullptr) == napi_ok &&
         ++room->references > 0 && defineBound(env, exports, "uringEnter", enter, room) &&
         defineBound(env, exports, "uringSetup", uringSetup, room) &&
         defineBound(env, exports, "uringRegister", uringRegister, room) &&
         defineBound(env, exports, "uringRegisterBuffers", uringRegisterBuffers, room) &&
         defineBound(env, exports, "uringClose", uringClose, room);
}

}  // namespace penstock
