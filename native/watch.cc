// Watches: callbacks in Node's loop when a descriptor is readable (uv_poll, level triggered).
//
// Invariants:
// - A watch polls a duplicate of its descriptor: another thread may close the original at any time
//   and neither libuv's tables nor a reused number suffer from it.
// - A Watch is freed by libuv's close callback only, and the Room after its last one.

#include <fcntl.h>
#include <unistd.h>
#include <uv.h>

#include <cerrno>

#include "check.h"
#include "room.h"

namespace penstock {

struct Watch {
  uv_poll_t poll;
  Room* room;
  uint32_t id;
  int fd;      // the caller's
  int polled;  // the duplicate that libuv polls
  napi_ref onReadable;
  napi_async_context context;
  bool active;
};

namespace {

void endRoom(Room* room) {
  napi_async_cleanup_hook_handle cleanup = room->cleanup;
  delete room;
  napi_remove_async_cleanup_hook(cleanup);
}

void onWatchClosed(uv_handle_t* handle) {
  Watch* watch = static_cast<Watch*>(handle->data);
  Room* room = watch->room;
  delete watch;
  room->handles--;
  if (room->ending && room->handles == 0) endRoom(room);
}

// Takes the watch out of the room's tables and begins its end; libuv frees it by onWatchClosed.
void beginClose(Watch* watch) {
  Room* room = watch->room;
  room->watches.erase(watch->id);
  room->watchOfFd.erase(watch->fd);
  watch->active = false;
  napi_delete_reference(room->env, watch->onReadable);
  napi_async_destroy(room->env, watch->context);
  uv_close(reinterpret_cast<uv_handle_t*>(&watch->poll), onWatchClosed);
  // libuv is out of epoll at once, though it needs the handle for longer.
  close(watch->polled);
}

void callBack(Watch* watch) {
  const napi_env env = watch->room->env;
  napi_handle_scope scope;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  napi_value function, receiver;
  if (napi_get_reference_value(env, watch->onReadable, &function) == napi_ok &&
      napi_get_global(env, &receiver) == napi_ok &&
      napi_make_callback(env, watch->context, receiver, function, 0, nullptr, nullptr) ==
          napi_pending_exception) {
    napi_value exception;
    bool pending = false;
    if (napi_is_exception_pending(env, &pending) == napi_ok && pending &&
        napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
      napi_fatal_exception(env, exception);
    }
  }
  napi_close_handle_scope(env, scope);
}

void onPoll(uv_poll_t* poll, int status, int) {
  Watch* watch = static_cast<Watch*>(poll->data);
  callBack(watch);
  // libuv stops a handle when it reports an error (POLLERR). A level-triggered watch goes on until
  // its owner, who has just been told and will see the error when reading, stops or closes it.
  if (status < 0 && watch->active) uv_poll_start(poll, UV_READABLE, onPoll);
}

napi_value watchOpen(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Room* room = roomOf(args);
  int fd;
  if (!args.fd(0, "fd", &fd) || !args.function(1, "onReadable")) return nullptr;
  if (room->ending) return throwErrno(env, ECANCELED, "watch");
  if (room->watchOfFd.contains(fd)) return throwErrno(env, EEXIST, "watch");
  const int polled = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (polled < 0) return throwErrno(env, errno, "fcntl");
  auto* watch = new Watch{.poll = {}, .room = room, .id = room->nextWatch, .fd = fd,
                          .polled = polled, .onReadable = nullptr, .context = nullptr,
                          .active = false};
  napi_value name;
  if (napi_create_reference(env, args.at(1), 1, &watch->onReadable) != napi_ok ||
      napi_create_string_utf8(env, "PENSTOCK_WATCH", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_async_init(env, nullptr, name, &watch->context) != napi_ok) {
    if (watch->onReadable != nullptr) napi_delete_reference(env, watch->onReadable);
    close(polled);
    delete watch;
    return throwErrno(env, ENOMEM, "watch");
  }
  // This also makes the open file non-blocking.
  const int error = uv_poll_init(room->loop, &watch->poll, polled);
  if (error != 0) {
    napi_delete_reference(env, watch->onReadable);
    napi_async_destroy(env, watch->context);
    close(polled);
    delete watch;
    return throwErrno(env, -error, "epoll_ctl");
  }
  watch->poll.data = watch;
  uv_unref(reinterpret_cast<uv_handle_t*>(&watch->poll));
  room->handles++;
  room->nextWatch++;
  room->watches.emplace(watch->id, watch);
  room->watchOfFd.emplace(fd, watch->id);
  return makeNumber(env, watch->id);
}

Watch* watchAt(const Args& args) {
  int64_t id;
  if (!args.integer(0, "watch", 1, UINT32_MAX, &id)) return nullptr;
  const auto& watches = roomOf(args)->watches;
  const auto found = watches.find(static_cast<uint32_t>(id));
  if (found != watches.end()) return found->second;
  throwRange(args.env(), "watch %lld is not open", static_cast<long long>(id));
  return nullptr;
}

napi_value watchSet(napi_env env, napi_callback_info info) {
  Args args(env, info);
  bool active, keepAlive = true;
  if (!args.boolean(1, "active", &active)) return nullptr;
  if (!args.absent(2) && !args.boolean(2, "keepAlive", &keepAlive)) return nullptr;
  Watch* watch = watchAt(args);
  if (watch == nullptr) return nullptr;
  if (active && !watch->active) {
    const int error = uv_poll_start(&watch->poll, UV_READABLE, onPoll);
    if (error != 0) return throwErrno(env, -error, "epoll_ctl");
  } else if (!active && watch->active) {
    uv_poll_stop(&watch->poll);
  }
  watch->active = active;
  auto* handle = reinterpret_cast<uv_handle_t*>(&watch->poll);
  if (active && keepAlive) uv_ref(handle);
  else uv_unref(handle);
  return makeUndefined(env);
}

napi_value watchClose(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Watch* watch = watchAt(args);
  if (watch == nullptr) return nullptr;
  beginClose(watch);
  return makeUndefined(env);
}

void onEnvironmentEnd(napi_async_cleanup_hook_handle, void* data) {
  Room* room = static_cast<Room*>(data);
  room->ending = true;
  napi_handle_scope scope;
  const bool scoped = napi_open_handle_scope(room->env, &scope) == napi_ok;
  napi_delete_reference(room->env, room->emptyFunction);
  while (!room->watches.empty()) beginClose(room->watches.begin()->second);
  if (scoped) napi_close_handle_scope(room->env, scope);
  if (room->handles == 0) endRoom(room);
}

}  // namespace

Room* openRoom(napi_env env) {
  napi_value source, function;
  auto* room = new Room{.env = env, .loop = nullptr, .emptyFunction = nullptr, .cleanup = nullptr,
                        .watches = {}, .watchOfFd = {}, .counters = {}};
  // A script's function, because only bytecode has the stack check that mayGoOn needs.
  if (napi_get_uv_event_loop(env, &room->loop) == napi_ok &&
      napi_create_string_utf8(env, "(function () {})", NAPI_AUTO_LENGTH, &source) == napi_ok &&
      napi_run_script(env, source, &function) == napi_ok &&
      napi_create_reference(env, function, 1, &room->emptyFunction) == napi_ok &&
      napi_add_async_cleanup_hook(env, onEnvironmentEnd, room, &room->cleanup) == napi_ok) {
    return room;
  }
  if (room->emptyFunction != nullptr) napi_delete_reference(env, room->emptyFunction);
  delete room;
  return nullptr;
}

bool initWatch(napi_env env, napi_value exports, Room* room) {
  constexpr RoomFunction functions[] = {
      {"watchOpen", watchOpen},
      {"watchSet", watchSet},
      {"watchClose", watchClose},
  };
  return defineInRoom(env, exports, room, functions);
}

}  // namespace penstock
