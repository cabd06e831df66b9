// Random claims about random descriptors: whatever a peer sends, admission takes exactly what is
// sealed, read-only, whole and as claimed, names a check that really failed for all else, and
// leaves no descriptor behind.

import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import fc from 'fast-check';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { addressSpace, GRANULE_BYTES as GRANULE, type Segment } from '../../lib/memory/index.js';
import { ALL_SEALS, startPython } from '../memory/peer.js';
import { openFds } from '../native/support.js';

const CASES = 1500;
const SEED = 20;
const SLOT = 2 ** 36;

interface Offer {
  fd: number;
  bytes: number;
  seals: number;
  writable: boolean;
  whole: boolean;
}

interface Claim {
  address: number;
  bytes: number;
  pageBytes: number;
}

const offers: Offer[] = [];
const live: Segment[] = [];
/** Addresses that were ever given, which may be taken until their views are collected. */
const given: Claim[] = [];
let peer: ReturnType<typeof startPython>;

/** Memory of another program, of every kind. */
beforeAll(async () => {
  const script = `
import fcntl, json, os, sys
made = []
def make(bytes, seals, whole):
  fd = os.memfd_create('peer', 2)
  os.ftruncate(fd, bytes)
  # The first word says which it is.
  for at in range(0, bytes if whole else bytes - 4096, 4096):
    os.pwrite(fd, len(made).to_bytes(4, 'little'), at)
  if seals: fcntl.fcntl(fd, 1033, seals)
  made.append({'fd': fd, 'bytes': bytes, 'seals': seals, 'whole': whole})
for seals in range(32): make(${GRANULE}, seals, True)
for n in range(1, 4):
  for whole in (True, False):
    for seals in (${ALL_SEALS}, ${ALL_SEALS} + 8): make(n * ${GRANULE}, seals, whole)
print(json.dumps(made), flush=True)
sys.stdin.read()
`;
  peer = startPython(script);
  const [line] = (await once(peer.stdout, 'data')) as [Buffer];
  for (const offer of JSON.parse(line.toString()) as Omit<Offer, 'writable'>[]) {
    const path = `/proc/${peer.pid}/fd/${offer.fd}`;
    for (const writable of [false, true]) {
      offers.push({ ...offer, writable, fd: openSync(path, writable ? 'r+' : 'r') });
    }
  }
});

afterAll(() => {
  for (const segment of live) segment.close();
  for (const { fd } of offers) closeSync(fd);
  peer.stdin.end();
});

const isInteger = Number.isSafeInteger;

/** A programmer's error: no claim that came by a wire could be so. */
function isSenseless({ address, bytes, pageBytes }: Claim): boolean {
  const inside = (value: number, min: number, max: number) =>
    isInteger(value) && value >= min && value <= max;
  return !(
    inside(address, SLOT, 2 ** 44 - GRANULE) &&
    inside(bytes, GRANULE, 2 ** 31) &&
    inside(pageBytes, 4096, 2 ** 30)
  );
}

/** Every check that the claim fails. */
function failures(offer: Offer, { address, bytes, pageBytes }: Claim): Set<string> {
  const failed = new Set<string>();
  const unit = Math.max(GRANULE, pageBytes);
  const sizes = [4096, GRANULE, 2 ** 30];
  if (!sizes.includes(pageBytes) || address % unit !== 0 || bytes % unit !== 0) {
    failed.add('segmentAdmit(alignment)');
  }
  const slot = Math.floor(address / SLOT);
  if (Math.floor((address + bytes - 1) / SLOT) !== slot) failed.add('segmentAdmit(slot)');
  if (slot === addressSpace().domain) failed.add('segmentAdmit(own slot)');
  if ((offer.seals & ALL_SEALS) !== ALL_SEALS) failed.add('segmentAdmit(seals)');
  if (offer.writable) failed.add('segmentAdmit(access mode)');
  if (offer.bytes !== bytes) failed.add('segmentAdmit(size)');
  if (!offer.whole) failed.add('segmentAdmit(holes)');
  if (pageBytes !== 4096) failed.add('segmentAdmit(page size)');
  return failed;
}

const overlaps = (a: Claim, b: { address: number; bytes: number }): boolean =>
  a.address < b.address + b.bytes && b.address < a.address + a.bytes;

/** Mostly what is right, or wrong by little. */
const claims = fc.record({
  good: fc.boolean(),
  offer: fc.nat(),
  address: fc.oneof(
    { weight: 6, arbitrary: fc.nat(511).map((n) => 5 * SLOT + n * GRANULE) },
    { weight: 2, arbitrary: fc.nat(3).map((n) => 6 * SLOT - n * GRANULE) },
    { weight: 1, arbitrary: fc.nat(2 ** 23).map((n) => n * GRANULE) },
    { weight: 1, arbitrary: fc.nat().map((n) => 5 * SLOT + n * 512) },
    { weight: 1, arbitrary: fc.double({ min: -1, max: 2 ** 45 }) },
  ),
  bytes: fc.oneof(
    { weight: 8, arbitrary: fc.constant(0) }, // as the offer has
    { weight: 2, arbitrary: fc.nat(5).map((n) => n * GRANULE) },
    { weight: 1, arbitrary: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }) },
  ),
  pageBytes: fc.oneof(
    { weight: 8, arbitrary: fc.constant(4096) },
    { weight: 1, arbitrary: fc.constantFrom(GRANULE, 2 ** 30, 8192, 0, -4096, 2 ** 31) },
  ),
});

it('admits exactly what is as it must be', () => {
  const before = openFds();
  const sound = offers.filter(
    ({ seals, writable, whole }) => (seals & ALL_SEALS) === ALL_SEALS && !writable && whole,
  );
  const outcomes = { senseless: 0, refused: 0, taken: 0, admitted: 0 };
  fc.assert(
    fc.property(claims, ({ good, offer: index, ...claim }) => {
      const chosen = good ? sound : offers;
      const offer = chosen[index % chosen.length]!;
      if (claim.bytes === 0) claim.bytes = offer.bytes;
      const outcome = tryAdmit(offer, claim);
      outcomes[outcome]++;
    }),
    { numRuns: CASES, seed: SEED, endOnFailure: true },
  );
  // All of it was tried.
  expect(Math.min(...Object.values(outcomes)), JSON.stringify(outcomes)).toBeGreaterThan(50);
  while (live.length > 0) live.pop()!.close();
  expect(openFds()).toEqual(before);
});

function tryAdmit(offer: Offer, claim: Claim): 'senseless' | 'refused' | 'taken' | 'admitted' {
  let segment: Segment;
  try {
    segment = addressSpace().admit(offer.fd, claim);
  } catch (error) {
    const senseless = isSenseless(claim);
    if (senseless || error instanceof RangeError) {
      expect({ senseless, error }).toMatchObject({
        senseless: true,
        error: expect.any(RangeError),
      });
      return 'senseless';
    }
    const { code, cause } = error as { code: string; cause: { code: string; syscall: string } };
    expect(code).toBe('ADMISSION_REFUSED');
    if (cause.code === 'EEXIST') {
      expect(given.some((one) => overlaps(claim, one))).toBe(true);
      return 'taken';
    }
    expect(failures(offer, claim)).toContain(cause.syscall);
    return 'refused';
  }
  expect({ senseless: isSenseless(claim), failed: [...failures(offer, claim)] }).toEqual({
    senseless: false,
    failed: [],
  });
  expect(live.some((one) => overlaps(claim, one))).toBe(false);
  expect(segment).toMatchObject({ ...claim, kind: 'admitted', writable: false });
  const number = Math.floor(offers.indexOf(offer) / 2);
  expect([segment.u32[0], segment.u32[segment.u32.length - 1024]]).toEqual([number, number]);
  given.push(claim);
  live.push(segment);
  if (live.length > 40) live.splice(given.length % live.length, 1)[0]!.close();
  return 'admitted';
}
