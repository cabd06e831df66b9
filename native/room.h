// What an environment's descriptors and watches hang on, shared by event.cc, file.cc, watch.cc
// and stream.cc.
//
// A Room belongs to one environment (the main thread or a worker) and is handed to each function as
// its data, so nothing in it needs a lock. It ends in an asynchronous cleanup hook, when libuv has
// let go of the last watch.

#pragma once

#include <node_api.h>
#include <uv.h>

#include <cstdint>
#include <unordered_map>
#include <unordered_set>

#include "check.h"

namespace penstock {

constexpr int64_t kSafeInteger = 9007199254740991;

struct Watch;

struct Room {
  napi_env env;
  uv_loop_t* loop;
  napi_ref emptyFunction;
  napi_async_cleanup_hook_handle cleanup;
  std::unordered_map<uint32_t, Watch*> watches;  // open ones
  std::unordered_map<int, uint32_t> watchOfFd;
  std::unordered_set<int> counters;  // eventfds and timerfds made in this environment
  uint32_t nextWatch = 1;
  uint32_t handles = 0;  // uv handles not yet closed, those of closed watches included
  bool ending = false;
};

inline Room* roomOf(const Args& args) { return static_cast<Room*>(args.data()); }

// watch.cc: a room for this environment, or nullptr.
Room* openRoom(napi_env env);

struct RoomFunction {
  const char* name;
  napi_callback callback;
};

// Exports functions that find the room in their data.
template <size_t count>
bool defineInRoom(napi_env env, napi_value exports, Room* room,
                  const RoomFunction (&functions)[count]) {
  for (const RoomFunction& entry : functions) {
    napi_value function;
    if (napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, entry.callback, room, &function) !=
            napi_ok ||
        napi_set_named_property(env, exports, entry.name, function) != napi_ok) {
      return false;
    }
  }
  return true;
}

bool initFile(napi_env env, napi_value exports, Room* room);
bool initWatch(napi_env env, napi_value exports, Room* room);
bool initBlocking(napi_env env, napi_value exports, Room* room);
bool initStream(napi_env env, napi_value exports, Room* room);

}  // namespace penstock
