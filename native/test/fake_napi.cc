// Node-API for tests that run without Node: the symbols are there for the linker, and whoever calls
// one ends the process. The headers are left out, since these have not their signatures.

#include <cstdio>
#include <cstdlib>

#define UNREACHABLE(name)                                     \
  extern "C" void name() {                                    \
    fprintf(stderr, "%s called in a native test\n", #name);   \
    abort();                                                  \
  }

UNREACHABLE(napi_create_array_with_length)
UNREACHABLE(napi_create_double)
UNREACHABLE(napi_create_error)
UNREACHABLE(napi_create_function)
UNREACHABLE(napi_create_string_utf8)
UNREACHABLE(napi_get_array_length)
UNREACHABLE(napi_get_cb_info)
UNREACHABLE(napi_get_dataview_info)
UNREACHABLE(napi_get_element)
UNREACHABLE(napi_get_named_property)
UNREACHABLE(napi_get_typedarray_info)
UNREACHABLE(napi_get_undefined)
UNREACHABLE(napi_get_value_bool)
UNREACHABLE(napi_get_value_double)
UNREACHABLE(napi_get_value_string_utf8)
UNREACHABLE(napi_is_dataview)
UNREACHABLE(napi_is_typedarray)
UNREACHABLE(napi_set_element)
UNREACHABLE(napi_set_named_property)
UNREACHABLE(napi_throw)
UNREACHABLE(napi_throw_range_error)
UNREACHABLE(napi_throw_type_error)
UNREACHABLE(napi_typeof)
