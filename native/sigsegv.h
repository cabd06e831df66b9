// Reporting SIGSEGV in the address space. See sigsegv.cc for its rules.

#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock {

constexpr uint32_t kDomains = 256;
constexpr size_t kDomainNameBytes = 64;

// Puts the handler in place, once; an errno when that fails. Under both locks.
int installSigsegv();

// What reports call the domain from here on; 0 bytes: its number alone. What is not printable ASCII
// is shown as '?', and at most kDomainNameBytes are kept. Under tableLock.
void nameDomain(uint32_t domain, const char* name, size_t bytes);

}  // namespace penstock
