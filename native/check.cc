#include "check.h"

#include <cerrno>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace penstock {

Args::Args(napi_env env, napi_callback_info info) : env_(env) {
  napi_get_cb_info(env, info, &count_, values_, nullptr, &data_);
}

bool Args::absent(size_t i) const {
  napi_valuetype type;
  return napi_typeof(env_, values_[i], &type) != napi_ok || type == napi_undefined ||
         type == napi_null;
}

static bool checkedInteger(napi_env env, napi_value value, const char* name, int64_t min,
                           int64_t max, int64_t* out) {
  double number;
  if (napi_get_value_double(env, value, &number) != napi_ok) {
    throwType(env, "%s must be a number", name);
    return false;
  }
  if (!(std::fabs(number) <= 9007199254740991.0) || std::trunc(number) != number) {
    throwRange(env, "%s must be an integer, not %g", name, number);
    return false;
  }
  const int64_t integer = static_cast<int64_t>(number);
  if (integer < min || integer > max) {
    throwRange(env, "%s must be from %lld to %lld, not %lld", name, static_cast<long long>(min),
               static_cast<long long>(max), static_cast<long long>(integer));
    return false;
  }
  *out = integer;
  return true;
}

bool Args::integer(size_t i, const char* name, int64_t min, int64_t max, int64_t* out) const {
  return checkedInteger(env_, values_[i], name, min, max, out);
}

bool Args::u32(size_t i, const char* name, uint32_t* out) const {
  int64_t value;
  if (!integer(i, name, 0, UINT32_MAX, &value)) return false;
  *out = static_cast<uint32_t>(value);
  return true;
}

bool Args::i32(size_t i, const char* name, int32_t* out) const {
  int64_t value;
  if (!integer(i, name, INT32_MIN, INT32_MAX, &value)) return false;
  *out = static_cast<int32_t>(value);
  return true;
}

bool Args::fd(size_t i, const char* name, int* out) const {
  int64_t value;
  if (!integer(i, name, 0, INT32_MAX, &value)) return false;
  *out = static_cast<int>(value);
  return true;
}

bool Args::boolean(size_t i, const char* name, bool* out) const {
  if (napi_get_value_bool(env_, values_[i], out) == napi_ok) return true;
  throwType(env_, "%s must be a boolean", name);
  return false;
}

bool Args::string(size_t i, const char* name, size_t maxBytes, std::string* out) const {
  size_t bytes;
  if (napi_get_value_string_utf8(env_, values_[i], nullptr, 0, &bytes) != napi_ok) {
    throwType(env_, "%s must be a string", name);
    return false;
  }
  if (bytes > maxBytes) {
    throwRange(env_, "%s must be at most %zu bytes, not %zu", name, maxBytes, bytes);
    return false;
  }
  out->resize(bytes);
  napi_get_value_string_utf8(env_, values_[i], out->data(), bytes + 1, &bytes);
  return true;
}

bool Args::function(size_t i, const char* name) const {
  napi_valuetype type;
  if (napi_typeof(env_, values_[i], &type) == napi_ok && type == napi_function) return true;
  throwType(env_, "%s must be a function", name);
  return false;
}

static size_t elementSize(napi_typedarray_type type) {
  switch (type) {
    case napi_int8_array:
    case napi_uint8_array:
    case napi_uint8_clamped_array:
      return 1;
    case napi_int16_array:
    case napi_uint16_array:
      return 2;
    case napi_int32_array:
    case napi_uint32_array:
    case napi_float32_array:
      return 4;
    default:
      return 8;
  }
}

bool Args::view(size_t i, const char* name, size_t elementBytes, void** data,
                size_t* bytes) const {
  bool isTyped = false;
  if (napi_is_typedarray(env_, values_[i], &isTyped) == napi_ok && isTyped) {
    napi_typedarray_type type;
    size_t length;
    napi_get_typedarray_info(env_, values_[i], &type, &length, data, nullptr, nullptr);
    const size_t size = elementSize(type);
    if (elementBytes == 0 || size == elementBytes) {
      *bytes = length * size;
      return true;
    }
  }
  bool isDataView = false;
  if (elementBytes <= 1 && napi_is_dataview(env_, values_[i], &isDataView) == napi_ok &&
      isDataView) {
    napi_get_dataview_info(env_, values_[i], bytes, data, nullptr, nullptr);
    return true;
  }
  if (elementBytes == 0) {
    throwType(env_, "%s must be a typed array", name);
  } else {
    throwType(env_, "%s must be a typed array of %zu-byte elements", name, elementBytes);
  }
  return false;
}

bool Args::integers(size_t i, const char* name, int64_t min, int64_t max, int64_t* out,
                    size_t capacity, size_t* count) const {
  uint32_t length;
  if (napi_get_array_length(env_, values_[i], &length) != napi_ok) {
    throwType(env_, "%s must be an array", name);
    return false;
  }
  if (length > capacity) {
    throwRange(env_, "%s must have at most %zu entries, not %u", name, capacity, length);
    return false;
  }
  for (uint32_t k = 0; k < length; k++) {
    napi_value element;
    if (napi_get_element(env_, values_[i], k, &element) != napi_ok) return false;
    if (!checkedInteger(env_, element, name, min, max, &out[k])) return false;
  }
  *count = length;
  return true;
}

bool Args::property(size_t i, const char* name, int64_t min, int64_t max, int64_t fallback,
                    int64_t* out) const {
  napi_valuetype type;
  if (napi_typeof(env_, values_[i], &type) != napi_ok || type != napi_object) {
    throwType(env_, "parameters must be an object");
    return false;
  }
  napi_value value;
  if (napi_get_named_property(env_, values_[i], name, &value) != napi_ok) return false;
  if (napi_typeof(env_, value, &type) == napi_ok && type == napi_undefined) {
    *out = fallback;
    return true;
  }
  return checkedInteger(env_, value, name, min, max, out);
}

napi_value throwErrno(napi_env env, int error, const char* syscall) {
  const char* code = strerrorname_np(error);
  std::string message = std::string(syscall) + ": " + (code != nullptr ? code : "EUNKNOWN") + ", " +
                        strerrordesc_np(error);
  napi_value codeValue, messageValue, object, syscallValue;
  napi_create_string_utf8(env, code != nullptr ? code : "EUNKNOWN", NAPI_AUTO_LENGTH, &codeValue);
  napi_create_string_utf8(env, message.c_str(), NAPI_AUTO_LENGTH, &messageValue);
  if (napi_create_error(env, codeValue, messageValue, &object) != napi_ok) return nullptr;
  napi_create_string_utf8(env, syscall, NAPI_AUTO_LENGTH, &syscallValue);
  napi_set_named_property(env, object, "syscall", syscallValue);
  setNumber(env, object, "errno", error);
  napi_throw(env, object);
  return nullptr;
}

napi_value throwRange(napi_env env, const char* format, ...) {
  char message[256];
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  napi_throw_range_error(env, "ERR_INVALID_ARG", message);
  return nullptr;
}

napi_value throwType(napi_env env, const char* format, ...) {
  char message[256];
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  napi_throw_type_error(env, "ERR_INVALID_ARG", message);
  return nullptr;
}

napi_value makeNumber(napi_env env, double value) {
  napi_value result;
  return napi_create_double(env, value, &result) == napi_ok ? result : nullptr;
}

napi_value makeNumbers(napi_env env, const double* values, size_t count) {
  napi_value array;
  if (napi_create_array_with_length(env, count, &array) != napi_ok) return nullptr;
  for (size_t i = 0; i < count; i++) {
    napi_value number = makeNumber(env, values[i]);
    if (number == nullptr || napi_set_element(env, array, i, number) != napi_ok) return nullptr;
  }
  return array;
}

napi_value makeUndefined(napi_env env) {
  napi_value result;
  return napi_get_undefined(env, &result) == napi_ok ? result : nullptr;
}

bool setNumber(napi_env env, napi_value object, const char* name, double value) {
  napi_value number = makeNumber(env, value);
  return number != nullptr && napi_set_named_property(env, object, name, number) == napi_ok;
}

bool defineFunction(napi_env env, napi_value exports, const char* name, napi_callback callback) {
  napi_value function;
  return napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function) ==
             napi_ok &&
         napi_set_named_property(env, exports, name, function) == napi_ok;
}

}  // namespace penstock
