// The native tests' one assertion: prints where and what, and ends the process with 1.

#pragma once

#include <cstdio>
#include <cstdlib>

#define EXPECT(condition)                                                       \
  do {                                                                          \
    if (!(condition)) {                                                         \
      fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition);  \
      exit(1);                                                                  \
    }                                                                           \
  } while (0)
