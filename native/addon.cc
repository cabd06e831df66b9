// The addon's door: one initialiser per file, run once per environment (main thread and each
// worker).

#include "check.h"

namespace penstock {

static napi_value init(napi_env env, napi_value exports) {
  if (initMemory(env, exports) && initUring(env, exports) && initEvent(env, exports) &&
      initSocket(env, exports) && initCpu(env, exports) && initHash(env, exports) &&
      initCopy(env, exports) && initFingerprints(env, exports) && initDma(env, exports) &&
      initRegion(env, exports) && initVfio(env, exports)) {
    return exports;
  }
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  if (!pending) napi_throw_error(env, nullptr, "penstock: the addon could not be initialised");
  return nullptr;
}

}  // namespace penstock

NAPI_MODULE(NODE_GYP_MODULE_NAME, penstock::init)
