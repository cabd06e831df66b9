// A table of fingerprints in one piece of memory: probe, insert, remove and sweep, a batch a call.
//
// It is a cache: it may forget any entry, and an entry may belong to another fingerprint of the
// same tag. A fingerprint is four words, of which the table uses two:
//
//   tag     word 0 >> 4, 28 bits; with a rate r (a power of two), only tags divisible by r are in
//   bucket  word 1 gives the first of two buckets; the tag leads from either one to the other, in
//           the same page, so that a table may have any number of pages
//
// An entry is 64 bits: the block's number in the low 36, the tag above; 0 is no entry. A bucket is
// eight entries, 64 bytes, newest first, with those that are no entries last. All entries of a
// fingerprint stand in one bucket, four at most, because only their places there tell their ages.
//
// Buckets are far apart in memory and each is used once: a batch asks for those of later
// fingerprints before it looks into the earlier ones'. Every index is made of a word that was read
// once, under the mask of the table's size: another thread that writes to any of the arrays can
// make the answers wrong and nothing else.

#include <emmintrin.h>

#include <bit>
#include <cstring>

#include "list.h"

namespace penstock {

namespace {

constexpr uint32_t kEntries = 8;
constexpr uint32_t kEntryBytes = 8;
constexpr uint32_t kBucketBytes = kEntries * kEntryBytes;
constexpr uint32_t kPerTag = 4;
constexpr uint32_t kBlockBits = 36;
constexpr uint32_t kBlockHighMask = (1u << (kBlockBits - 32)) - 1;
constexpr uint32_t kRateMax = 1u << 16;
constexpr uint32_t kFingerprintWords = 4;
constexpr uint32_t kBlockWords = 2;
constexpr uint32_t kAnswerWords = 1 + 2 * kPerTag;

constexpr uint32_t kPageBuckets = 4096 / kBucketBytes;

struct Table {
  uint8_t* data;
  uint32_t buckets;
  uint32_t mask;  // buckets - 1 where they are a power of two, else 0

  uint32_t first(uint32_t word) const {
    if (mask != 0) return word & mask;
    return static_cast<uint32_t>(static_cast<uint64_t>(word) * buckets >> 32);
  }

  // `first` and `way` are below a page's buckets apart.
  uint32_t second(uint32_t first, uint32_t way) const {
    return mask != 0 ? (first ^ way) & mask : buckets > 1 ? first ^ way : first;
  }

  uint8_t* bucket(uint32_t index) const {
    return data + static_cast<size_t>(index) * kBucketBytes;
  }
};

// One fingerprint's place in the batch and in the table.
struct Place {
  uint32_t index;
  uint32_t tag;
  uint8_t* first;
  uint8_t* second;  // `first` again in a table of one bucket
};

// The way between a tag's two buckets, which are within one aligned page of 4 KiB: they share a
// walk through the page tables, which is a fifth of a lookup. The product's upper bits also differ
// among sampled tags, which end in zeros. Odd, so that the buckets are two wherever there are two.
uint32_t mixTag(uint32_t tag) {
  return tag * 0x9e3779b1u >> (32 - std::bit_width(kPageBuckets - 1)) | 1;
}

Place locate(const Table& table, const uint32_t* fingerprint, uint32_t index, uint32_t tag) {
  const uint32_t first = table.first(readWord(fingerprint + 1));
  const uint32_t second = table.second(first, mixTag(tag));
  return {index, tag, table.bucket(first), table.bucket(second)};
}

uint64_t loadEntry(const uint8_t* bucket, uint32_t at) {
  uint64_t entry;
  memcpy(&entry, bucket + at * kEntryBytes, kEntryBytes);
  return entry;
}

void storeEntry(uint8_t* bucket, uint32_t at, uint64_t entry) {
  memcpy(bucket + at * kEntryBytes, &entry, kEntryBytes);
}

// Four entries' low (upper = false) or high words.
template <bool upper>
__m128i fourWords(const uint8_t* entries) {
  const auto* pairs = reinterpret_cast<const __m128i*>(entries);
  const __m128 a = _mm_castsi128_ps(_mm_loadu_si128(pairs));
  const __m128 b = _mm_castsi128_ps(_mm_loadu_si128(pairs + 1));
  constexpr int kPick = upper ? _MM_SHUFFLE(3, 1, 3, 1) : _MM_SHUFFLE(2, 0, 2, 0);
  return _mm_castps_si128(_mm_shuffle_ps(a, b, kPick));
}

// A bit for each of two times four comparisons.
uint32_t bits(__m128i low, __m128i high) {
  const __m128i packed = _mm_packs_epi16(_mm_packs_epi32(low, high), _mm_setzero_si128());
  return static_cast<uint32_t>(_mm_movemask_epi8(packed));
}

// A bit for each place of the bucket with no entry.
uint32_t emptyPlaces(const uint8_t* bucket) {
  const uint8_t* half = bucket + kBucketBytes / 2;
  const __m128i zero = _mm_setzero_si128();
  const __m128i a = _mm_or_si128(fourWords<false>(bucket), fourWords<true>(bucket));
  const __m128i b = _mm_or_si128(fourWords<false>(half), fourWords<true>(half));
  return bits(_mm_cmpeq_epi32(a, zero), _mm_cmpeq_epi32(b, zero));
}

// A bit for each entry of the bucket with this tag.
uint32_t findTag(const uint8_t* bucket, uint32_t tag) {
  constexpr int kShift = kBlockBits - 32;
  const __m128i wanted = _mm_set1_epi32(static_cast<int>(tag));
  const __m128i a = _mm_srli_epi32(fourWords<true>(bucket), kShift);
  const __m128i b = _mm_srli_epi32(fourWords<true>(bucket + kBucketBytes / 2), kShift);
  const uint32_t found = bits(_mm_cmpeq_epi32(a, wanted), _mm_cmpeq_epi32(b, wanted));
  return tag != 0 ? found : found & ~emptyPlaces(bucket);
}

// Takes the entry out of the bucket, if it is there: those behind it move up.
bool takeEntry(uint8_t* bucket, uint32_t tag, uint64_t entry) {
  for (uint32_t found = findTag(bucket, tag); found != 0; found &= found - 1) {
    const uint32_t at = static_cast<uint32_t>(std::countr_zero(found));
    if (loadEntry(bucket, at) != entry) continue;
    uint8_t* gap = bucket + at * kEntryBytes;
    memmove(gap, gap + kEntryBytes, (kEntries - 1 - at) * kEntryBytes);
    storeEntry(bucket, kEntries - 1, 0);
    return true;
  }
  return false;
}

bool takeFromBoth(const Place& place, uint64_t entry) {
  const bool inFirst = takeEntry(place.first, place.tag, entry);
  const bool inSecond = takeEntry(place.second, place.tag, entry);
  return inFirst || inSecond;
}

// Calls `act` for each sampled fingerprint, in order, once its buckets were asked for and are
// likely to be there; `skip` at once for each that is not sampled.
template <typename Skip, typename Act>
void forEachPlace(const Table& table, uint32_t rate, const uint32_t* fingerprints, uint32_t count,
                  Skip skip, Act act) {
  constexpr uint32_t kAhead = 32;
  Place places[kAhead];
  uint32_t head = 0, tail = 0;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t* fingerprint = fingerprints + static_cast<size_t>(i) * kFingerprintWords;
    const uint32_t tag = readWord(fingerprint) >> 4;
    if ((tag & (rate - 1)) != 0) {
      skip(i);
      continue;
    }
    if (tail - head == kAhead) act(places[head++ % kAhead]);
    const Place place = locate(table, fingerprint, i, tag);
    __builtin_prefetch(place.first);
    __builtin_prefetch(place.second);
    places[tail++ % kAhead] = place;
  }
  while (head != tail) act(places[head++ % kAhead]);
}

// One loop over what both buckets have: which of them it is cannot be predicted.
void answer(const Place& place, uint32_t* out) {
  uint32_t found = findTag(place.first, place.tag);
  if (place.second != place.first) found |= findTag(place.second, place.tag) << kEntries;
  uint32_t count = 0;
  for (; found != 0 && count < kPerTag; found &= found - 1) {
    const uint32_t at = static_cast<uint32_t>(std::countr_zero(found));
    const uint8_t* bucket = at < kEntries ? place.first : place.second;
    const uint64_t entry = loadEntry(bucket, at % kEntries);
    out[1 + 2 * count] = static_cast<uint32_t>(entry);
    out[2 + 2 * count] = static_cast<uint32_t>(entry >> 32) & kBlockHighMask;
    count++;
  }
  out[0] = count;
}

// What became of the fingerprints of a batch: the words of fingerprintInsert's `out`.
enum Outcome : uint32_t { kInserted, kEvicted, kDropped, kNotSampled, kRenewed, kOutcomes };

void insertEntry(const Place& place, uint64_t entry, uint32_t* outcomes) {
  outcomes[takeFromBoth(place, entry) ? kRenewed : kInserted]++;
  uint8_t* bucket = place.first;
  uint32_t found = findTag(bucket, place.tag);
  if (found == 0) {
    found = findTag(place.second, place.tag);
    const bool roomier = std::popcount(emptyPlaces(place.second)) >
                         std::popcount(emptyPlaces(place.first));
    if (found != 0 || roomier) bucket = place.second;
  }
  // The place that is given up: of a fifth block the fingerprint's oldest, else the first empty
  // one, else the bucket's oldest.
  uint32_t given = kEntries - 1;
  if (std::popcount(found) >= static_cast<int>(kPerTag)) {
    given = static_cast<uint32_t>(std::bit_width(found)) - 1;
    outcomes[kDropped]++;
  } else if (const uint32_t empty = emptyPlaces(bucket); empty != 0) {
    given = static_cast<uint32_t>(std::countr_zero(empty));
  } else {
    outcomes[kEvicted]++;
  }
  memmove(bucket + kEntryBytes, bucket, given * kEntryBytes);
  storeEntry(bucket, 0, entry);
}

// Drops the bucket's entries that the rate leaves out; gives how many.
uint32_t sweepBucket(uint8_t* bucket, uint32_t rate) {
  uint32_t kept = 0, dropped = 0;
  for (uint32_t at = 0; at < kEntries; at++) {
    const uint64_t entry = loadEntry(bucket, at);
    if (entry == 0) continue;
    if (((entry >> kBlockBits) & (rate - 1)) != 0) {
      dropped++;
    } else {
      if (kept != at) storeEntry(bucket, kept, entry);
      kept++;
    }
  }
  if (dropped != 0) memset(bucket + kept * kEntryBytes, 0, (kEntries - kept) * kEntryBytes);
  return dropped;
}

bool readTable(const Args& args, size_t i, Table* table) {
  void* data;
  size_t bytes;
  if (!args.view(i, "table", sizeof(uint32_t), &data, &bytes)) return false;
  const bool isPower = bytes >= kBucketBytes && std::has_single_bit(bytes);
  if (!isPower && (bytes == 0 || bytes % (kPageBuckets * kBucketBytes) != 0)) {
    throwRange(args.env(), "table must have a power of two of words from 16 on, or 1024s, not %zu",
               bytes / sizeof(uint32_t));
    return false;
  }
  const auto buckets = static_cast<uint32_t>(bytes / kBucketBytes);
  *table = {static_cast<uint8_t*>(data), buckets, isPower ? buckets - 1 : 0};
  return true;
}

bool readRate(const Args& args, size_t i, uint32_t* rate) {
  int64_t value;
  if (!args.integer(i, "rate", 1, kRateMax, &value)) return false;
  *rate = static_cast<uint32_t>(value);
  if (std::has_single_bit(*rate)) return true;
  throwRange(args.env(), "rate must be a power of two, not %u", *rate);
  return false;
}

// A view of at least `count` times `words` words.
bool readWords(const Args& args, size_t i, const char* name, size_t words, uint32_t count,
               uint32_t** out) {
  void* data;
  size_t bytes;
  if (!args.view(i, name, sizeof(uint32_t), &data, &bytes)) return false;
  if (bytes / (words * sizeof(uint32_t)) < count) {
    throwRange(args.env(), "%s must have %zu words for each of %u", name, words, count);
    return false;
  }
  *out = static_cast<uint32_t*>(data);
  return true;
}

// The block's number, or 0 for words that are none: zeros, or more than 36 bits.
uint64_t readBlock(const uint32_t* blocks, uint32_t index) {
  const uint64_t block = readAddress(blocks + static_cast<size_t>(index) * kBlockWords);
  return (block >> kBlockBits) == 0 ? block : 0;
}

// A view of blocks, all of which must be numbers of blocks: nothing is done for part of a batch.
bool readBlocks(const Args& args, size_t i, uint32_t count, uint32_t** blocks) {
  if (!readWords(args, i, "blocks", kBlockWords, count, blocks)) return false;
  for (uint32_t k = 0; k < count; k++) {
    if (readBlock(*blocks, k) != 0) continue;
    throwRange(args.env(), "block %u must be from 1 to 2^36 - 1", k);
    return false;
  }
  return true;
}

uint64_t makeEntry(uint32_t tag, uint64_t block) {
  return static_cast<uint64_t>(tag) << kBlockBits | block;
}

napi_value fingerprintProbe(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Table table;
  uint32_t rate, count, *fingerprints, *out;
  if (!readTable(args, 0, &table) || !readRate(args, 1, &rate) || !args.u32(3, "count", &count) ||
      !readWords(args, 2, "fingerprints", kFingerprintWords, count, &fingerprints) ||
      !readWords(args, 4, "out", kAnswerWords, count, &out)) {
    return nullptr;
  }
  uint32_t sampled = 0;
  {
    SegmentLock lock;  // a view may lie over a segment
    forEachPlace(
        table, rate, fingerprints, count,
        [&](uint32_t index) { out[static_cast<size_t>(index) * kAnswerWords] = 0; },
        [&](const Place& place) {
          answer(place, out + static_cast<size_t>(place.index) * kAnswerWords);
          sampled++;
        });
  }
  return makeNumber(env, sampled);
}

napi_value fingerprintInsert(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Table table;
  uint32_t rate, count, *fingerprints, *blocks, *out;
  if (!readTable(args, 0, &table) || !readRate(args, 1, &rate) || !args.u32(4, "count", &count) ||
      !readWords(args, 5, "out", kOutcomes, 1, &out) ||
      !readWords(args, 2, "fingerprints", kFingerprintWords, count, &fingerprints) ||
      !readBlocks(args, 3, count, &blocks)) {
    return nullptr;
  }
  uint32_t outcomes[kOutcomes] = {};
  SegmentLock lock;
  forEachPlace(
      table, rate, fingerprints, count, [&](uint32_t) { outcomes[kNotSampled]++; },
      [&](const Place& place) {
        const uint64_t block = readBlock(blocks, place.index);
        if (block != 0) insertEntry(place, makeEntry(place.tag, block), outcomes);
      });
  for (uint32_t i = 0; i < kOutcomes; i++) out[i] += outcomes[i];
  return makeUndefined(env);
}

napi_value fingerprintRemove(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Table table;
  uint32_t count, *fingerprints, *blocks;
  if (!readTable(args, 0, &table) || !args.u32(3, "count", &count) ||
      !readWords(args, 1, "fingerprints", kFingerprintWords, count, &fingerprints) ||
      !readBlocks(args, 2, count, &blocks)) {
    return nullptr;
  }
  uint32_t removed = 0;
  {
    SegmentLock lock;
    forEachPlace(
        table, 1, fingerprints, count, [](uint32_t) {},
        [&](const Place& place) {
          const uint64_t block = readBlock(blocks, place.index);
          if (block != 0 && takeFromBoth(place, makeEntry(place.tag, block))) removed++;
        });
  }
  return makeNumber(env, removed);
}

napi_value fingerprintSweep(napi_env env, napi_callback_info info) {
  Args args(env, info);
  Table table;
  uint32_t rate, from, buckets;
  if (!readTable(args, 0, &table) || !readRate(args, 1, &rate) || !args.u32(2, "from", &from) ||
      !args.u32(3, "buckets", &buckets)) {
    return nullptr;
  }
  const uint64_t there = table.buckets;
  if (static_cast<uint64_t>(from) + buckets > there) {
    return throwRange(env, "%u buckets from %u on are not in a table of %llu", buckets, from,
                      static_cast<unsigned long long>(there));
  }
  double dropped = 0;
  {
    SegmentLock lock;
    for (uint32_t i = 0; i < buckets; i++) dropped += sweepBucket(table.bucket(from + i), rate);
  }
  return makeNumber(env, dropped);
}

}  // namespace

bool initFingerprints(napi_env env, napi_value exports) {
  return defineFunction(env, exports, "fingerprintProbe", fingerprintProbe) &&
         defineFunction(env, exports, "fingerprintInsert", fingerprintInsert) &&
         defineFunction(env, exports, "fingerprintRemove", fingerprintRemove) &&
         defineFunction(env, exports, "fingerprintSweep", fingerprintSweep);
}

}  // namespace penstock
