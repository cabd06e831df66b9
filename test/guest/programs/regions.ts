// A domain in a guest: maps its own region and those of its peers, talks to them, and tries to
// write where it may not. `regions.js DOMAIN ROLE PCI=DOMAIN…`; other roles than `talk` are run by
// it, as processes that may die.

import { spawnSync } from 'node:child_process';
import { Mailbox, OwnRegion, type PeerRegion, type PeerState } from '../../../lib/idc/index.js';
import { PenstockError } from '../../../lib/errors.js';
import { addressSpace, type Segment } from '../../../lib/memory/index.js';
import { native } from '../../../lib/native.js';
import { fileRoot, listIvshmem, mapIvshmem } from '../../../lib/pci/index.js';
import { hear, report, say } from '../inside.js';
import { addressOf, checkData, exchange, lifeIn, nextMessage, offerData } from '../region-talk.js';

const [, program = '', first = '', role = '', ...places] = process.argv;
const domain = Number(first);
const regions = places.map((place) => {
  const [address = '', owner = ''] = place.split('=');
  return { address, domain: Number(owner) };
});
const ownPci = regions.find((region) => region.domain === domain)!.address;
const peers = regions.filter((region) => region.domain !== domain);

/** Of control words, in the page of mailboxes: nobody has this one. */
const UNUSED = 4096 + 512;

async function refusal(attempt: () => unknown): Promise<string> {
  try {
    await attempt();
    return 'none';
  } catch (error) {
    return error instanceof PenstockError ? error.code : String(error);
  }
}

/** A writable mapping of a peer's memory, made behind the library's back. */
function storeRaw(pci: string, offset: number): number[] {
  const fd = native.fileOpen(`/sys/bus/pci/devices/${pci}/resource2`, 2, 0);
  const id = native.regionMap(fd, 0, 8192, true);
  const words = new Int32Array(native.regionBuffer(id), offset, 1);
  const before = words[0]!;
  words[0] = ~before;
  const stored = words[0];
  Atomics.add(words, 0, 1);
  const seen = [before, stored, Atomics.load(words, 0)];
  native.regionClose(id);
  native.fileClose(fd);
  return seen;
}

function nativeStores(own: Segment, peer: Segment): number[] {
  const words = ({ address }: Segment) => [address >>> 0, Math.floor(address / 2 ** 32)];
  const copy = (to: Segment, from: Segment) =>
    native.copyList(Uint32Array.of(...words(to), ...words(from), 64, 0, 0, 0), 1);
  const scratch = addressSpace().create(1, { pageBytes: 4096 });
  const fill = native.fillList(Uint32Array.of(...words(peer), 64, 0xff), 1);
  const done = [copy(peer, own), fill, copy(scratch, peer)];
  const equal = Uint32Array.of(...words(scratch), ...words(peer), 64, 0, 0, 0);
  native.compareList(equal, 1);
  scratch.close();
  return [...done, equal[5]!];
}

/** The same program in another role; how it ended and what it said. */
function run(other: string): unknown {
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    [program, first, other, ...places],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] },
  );
  return { status, signal, stdout, stderr };
}

async function tryRefusals(own: Segment, peer: Segment): Promise<void> {
  const pci = peers.find((one) => addressOf(one.domain) === peer.address)!.address;
  const target = { address: peer.address, writable: true };
  report('native stores', nativeStores(own, peer));
  report('writable', await refusal(() => mapIvshmem(pci, target)));
  const fd = native.fileOpen(`/sys/bus/pci/devices/${pci}/resource2`, 2, 0);
  const elsewhere = { address: addressOf(9), bytes: peer.bytes };
  report('by a writable descriptor', await refusal(() => addressSpace().attach(fd, elsewhere)));
  native.fileClose(fd);
  report('taken', await refusal(() => mapIvshmem(pci, { ...target, writable: false })));
  report('raw', storeRaw(pci, UNUSED));
  // Sleeping goes, though only this process can wake.
  const zero = peer.address + UNUSED;
  report('futex', [native.futexWait(zero, 0, 1000), native.futexWake(zero, 1)]);
}

/** Stores into a peer's memory as JavaScript does: the end of this process. */
async function store(): Promise<void> {
  addressSpace().join(domain);
  const { address, domain: owner } = peers.at(-1)!;
  const peer = await mapIvshmem(address, { address: addressOf(owner), writable: false });
  console.log(peer.u32[0]?.toString(16));
  peer.u32[1024] = 0x12345678;
  console.log('stored');
}

/** A peer's memory taken for the own region, as by a wrong command line of QEMU. */
async function mistake(): Promise<void> {
  addressSpace().join(domain);
  const place = { address: addressOf(domain), writable: true };
  const segment = await mapIvshmem(peers[0]!.address, place);
  console.log(await refusal(() => new OwnRegion(segment, { name: 'mistaken' })));
}

/** Looks at a peer until it is `wanted`; what it was before. */
async function watch(peer: PeerRegion, wanted: PeerState): Promise<PeerState> {
  let before: PeerState = 'unseen';
  for (;;) {
    const state = peer.state(performance.now());
    if (state === wanted) return before;
    before = state;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function talk(): Promise<void> {
  report('devices', listIvshmem(fileRoot()));
  addressSpace().join(domain);
  const own = await mapIvshmem(ownPci, { address: addressOf(domain), writable: true });
  const others: Segment[] = [];
  for (const { address, domain: owner } of peers) {
    others.push(await mapIvshmem(address, { address: addressOf(owner), writable: false }));
  }
  report(
    'segments',
    [own, ...others].map(({ address, bytes, kind }) => [address, bytes, kind]),
  );
  let region = new OwnRegion(own, { name: `guest ${domain}` });
  region.keepBeating();
  const lives = await Promise.all(others.map((segment) => lifeIn(segment)));
  report(
    'names',
    lives.map(({ name }) => name),
  );
  const boxes = lives.map((life) => new Mailbox(region, life));

  report('messages', await exchange(domain, boxes, Number(await hear())));
  await offerData(region, boxes);
  const right: boolean[] = [];
  for (const box of boxes) right.push(await checkData(box));
  report('data', right);
  await tryRefusals(own, others[0]!);
  if (domain === 2) {
    report('store', run('store'));
    report('mistake', run('mistake'));
  }
  say('talked');

  // Domain 3 ends its life in good order and begins another; then its guest is killed.
  const last = boxes.at(-1)!;
  if (domain === 3) {
    await hear();
    for (const box of boxes) box.send('farewell');
    region.close();
    region = new OwnRegion(own, { name: 'guest 3 again' });
    region.keepBeating();
    const again = new Mailbox(region, lives[1]!);
    report('after', await nextMessage(again));
    again.send('and back');
    say('back');
    await hear();
    return;
  }
  await hear();
  const next = await lifeIn(others[1]!, last.peer.generation);
  report('old life', await refusal(() => last.receive()));
  const again = new Mailbox(region, next);
  again.send('you again');
  report('answer', await nextMessage(again));
  report('next life', next.name);
  await watch(next, 'alive');
  say('watching');
  report('before it was gone', await watch(next, 'gone'));
  report('host', lives[0]!.state(performance.now()));
  region.close();
}

const roles = { talk, store, mistake };
await roles[role as keyof typeof roles]();
