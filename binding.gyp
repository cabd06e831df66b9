{
  "targets": [
    {
      "target_name": "penstock",
      "sources": [
        "native/addon.cc",
        "native/blocking.cc",
        "native/check.cc",
        "native/copy.cc",
        "native/cpu.cc",
        "native/dma.cc",
        "native/event.cc",
        "native/file.cc",
        "native/fingerprints.cc",
        "native/hash.cc",
        "native/memory.cc",
        "native/object.cc",
        "native/region.cc",
        "native/registry.cc",
        "native/ring.cc",
        "native/segment.cc",
        "native/sigbus.cc",
        "native/sigsegv.cc",
        "native/socket.cc",
        "native/status.cc",
        "native/stream.cc",
        "native/uring.cc",
        "native/vfio.cc",
        "native/watch.cc"
      ],
      "defines": ["NAPI_VERSION=9", "_GNU_SOURCE"],
      "cflags_cc!": ["-std=gnu++17", "-fno-rtti"],
      "cflags_cc": ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"],
      "ldflags": ["-Wl,-z,nodelete"]
    }
  ]
}
