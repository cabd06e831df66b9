// What a lookup in the fingerprint index costs: 256 MiB of table at two loads, every fingerprint
// sampled, batches of 256, all found or none. Beside the same lookup in TypeScript on the same
// words, which waits for one bucket after the other. And how many entries full buckets lose on the
// way to a load of 0.9.
//
// A batch's fingerprints are made just before it is timed, as they are where blocks were just
// hashed: they are in the cache, the table is not.

import { FingerprintIndex, IndexWords } from '../lib/dedup/write/fingerprint-index.js';
import {
  atLeast,
  atMost,
  finish,
  median,
  parseOptions,
  program,
  progress,
  progressEnd,
  type Cell,
} from './report.js';

const TABLE_BYTES = 2 ** 28;
const BATCH = 256;
const BATCHES = 2000;
const BLOCKS_MAX = 4;
const LOADS = [0.5, 0.9];
const PROBE_NS_MAX = 25;
const SCRIPT_TIMES_MIN = 5;
const EVICTED_SHARE_MAX = 0.015;
/** Numbers from here on are of fingerprints that are never inserted. */
const ABSENT = 2 ** 31;

const fingerprints = new Uint32Array(BATCH * IndexWords.fingerprint);
const blocks = new Uint32Array(BATCH * IndexWords.block);
const answers = new Uint32Array(BATCH * IndexWords.answer);

/** A bijection of 32-bit numbers that looks random (MurmurHash3's finaliser). */
function mix(value: number): number {
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
  return (value ^ (value >>> 16)) >>> 0;
}

/** The `number`th fingerprint, as the batch's `i`th. */
function setFingerprint(i: number, number: number): void {
  fingerprints[i * IndexWords.fingerprint] = mix(number);
  fingerprints[i * IndexWords.fingerprint + 1] = mix(number ^ 0x5bd1e995);
}

/** Inserts the fingerprints from the `next`th on until the load is reached; ns of each insert. */
function fill(index: FingerprintIndex, next: number, load: number): { next: number; ns: number } {
  const times: number[] = [];
  while (index.entries < load * index.slots) {
    for (let i = 0; i < BATCH; i++, next++) {
      setFingerprint(i, next);
      blocks[i * IndexWords.block] = next + 1;
    }
    const start = performance.now();
    index.insert(fingerprints, blocks, BATCH);
    times.push(((performance.now() - start) * 1e6) / BATCH);
  }
  return { next, ns: median(times.slice(-BATCHES)) };
}

type Probe = (fingerprints: Uint32Array, count: number, out: Uint32Array) => number;

/** The addon's lookup, statement for statement as far as there are statements for it. */
function scriptedProbe(table: Uint32Array): Probe {
  const mask = table.length / 16 - 1;
  return (fingerprints, count, out) => {
    let hits = 0;
    for (let i = 0; i < count; i++) {
      const tag = fingerprints[i * IndexWords.fingerprint]! >>> 4;
      const step = (Math.imul(tag, 0x9e3779b1) >>> 26) | 1;
      let bucket = fingerprints[i * IndexWords.fingerprint + 1]! & mask;
      let at = i * IndexWords.answer + 1;
      let found = 0;
      for (let side = 0; side < 2; side++) {
        for (let entry = bucket * 16; entry < bucket * 16 + 16; entry += 2) {
          const high = table[entry + 1]!;
          if (high >>> 4 !== tag || found === BLOCKS_MAX) continue;
          if (high === 0 && table[entry] === 0) continue;
          out[at++] = table[entry]!;
          out[at++] = high & 15;
          found++;
        }
        bucket = (bucket ^ step) & mask;
      }
      out[i * IndexWords.answer] = found;
      if (found > 0) hits++;
    }
    return hits;
  };
}

/** Median ns of a lookup, with fingerprints from the `first`th on, of `range` ones at random. */
function time(probe: Probe, first: number, range: number, seed: number): number {
  const times: number[] = [];
  let hits = 0;
  let drawn = seed;
  for (let batch = 0; batch < BATCHES; batch++) {
    for (let i = 0; i < BATCH; i++) {
      drawn = (Math.imul(drawn, 1664525) + 1013904223) >>> 0;
      setFingerprint(i, first + Math.floor((mix(drawn) / 2 ** 32) * range));
    }
    const start = performance.now();
    hits += probe(fingerprints, BATCH, answers);
    times.push(((performance.now() - start) * 1e6) / BATCH);
  }
  const share = hits / (BATCH * BATCHES);
  // A few are lost to full buckets, and a few others share a tag and a bucket.
  if (first === ABSENT ? share > 0.001 : share < 0.98) throw new Error(`${share} were found`);
  return median(times);
}

interface Round {
  load: number;
  lookups: 'found' | 'absent';
  indexNs: number;
  scriptNs: number;
}

await program(async () => {
  const options = parseOptions({ rounds: 5, runtime: 1 });
  const index = new FingerprintIndex({ bytes: TABLE_BYTES, rate: 1 });
  const scripted = scriptedProbe(index['table']);
  const indexed: Probe = (words, count, out) => index.probe(words, count, out);
  const rounds: Round[] = [];
  const rows: Record<string, Cell>[] = [];
  let evictedShare = 0;
  let next = 0;
  try {
    for (const load of LOADS) {
      progress(`filling to ${load}`);
      const filled = fill(index, next, load);
      next = filled.next;
      evictedShare = index.evictions / next;
      for (let round = 0; round < options.rounds; round++) {
        for (const lookups of ['found', 'absent'] as const) {
          progress(`load ${load}, round ${round + 1} of ${options.rounds}: ${lookups}`);
          const [first, range] = lookups === 'found' ? [0, next] : [ABSENT, 2 ** 30];
          const seed = round * 2 + 1;
          const indexNs = time(indexed, first, range, seed);
          const scriptNs = time(scripted, first, range, seed + 1000);
          rounds.push({ load, lookups, indexNs, scriptNs });
        }
      }
      for (const lookups of ['found', 'absent']) {
        const of = rounds.filter((round) => round.load === load && round.lookups === lookups);
        const indexNs = median(of.map((round) => round.indexNs));
        const scriptNs = median(of.map((round) => round.scriptNs));
        rows.push({
          load,
          lookups,
          'ns each': indexNs,
          'in TypeScript': scriptNs,
          times: scriptNs / indexNs,
          'ns of an insert': filled.ns,
          'evicted share': evictedShare,
        });
      }
    }
  } finally {
    index.close();
  }
  progressEnd();
  const bars = rows.map((row) =>
    atMost(
      `ns a lookup, load ${row['load']}, ${row['lookups']}`,
      row['ns each'] as number,
      PROBE_NS_MAX,
    ),
  );
  const times = Math.min(...rows.map((row) => row['times'] as number));
  bars.push(atLeast('lookups, times those in TypeScript', times, SCRIPT_TIMES_MIN));
  bars.push(atMost('evicted on the way to load 0.9, share', evictedShare, EVICTED_SHARE_MAX));
  finish({ schema: 'penstock.bench.fingerprint-index/1', rows, bars, rounds }, options);
});
