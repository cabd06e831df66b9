// A domain of the soaks: `idc-child.js ROLE HUB LIFE [COUNT]`, told what to do over its IPC channel.
//
//   producer → middle → consumer → producer (acknowledgements)
//
// All of them connect again whenever a peer is gone, and note down what must never be.

import { readdirSync, readlinkSync } from 'node:fs';
import { PenstockError } from '../../lib/errors.js';
import { Hub, joinDomain, type Channel, type Domain, type Message } from '../../lib/idc/index.js';
import { statusWords, StatusWord } from '../../lib/memory/index.js';
import { sleep } from './harness.js';
import { bodyFault, fillBody, Word, type ChildReport } from './idc-words.js';

const [, , role = '', hubPath = '', lifeText = '0', countText = '0'] = process.argv;
const life = Number(lifeText);
/** Buffers of a chain's run; 0: no end, with random sizes and delays. */
const chain = Number(countText);
const OUTSTANDING_MAX = 48;
const CHAIN_BYTES = 65536;
/** A full look at every so many buffers of a chain; a few words at the others. */
const CHAIN_WHOLE = 16;

const faults: string[] = [];
let sent = 0;
let acknowledged = 0;
let received = 0;
let paused = false;
let domain: Domain;

process.on('disconnect', () => process.exit());
process.on('uncaughtException', (error) => {
  faults.push(String(error.stack));
});

function fault(what: string): void {
  if (faults.length < 10) faults.push(`${role}: ${what}`);
}

/** Whether an error only says that somebody is gone. */
function isDeparture(error: unknown): boolean {
  const codes = ['PEER_GONE', 'CHANNEL_CLOSED', 'TIMED_OUT', 'NO_SUCH_PORT'];
  return error instanceof PenstockError && codes.includes(error.code);
}

/** Does something again and again, as long as nothing worse than departures ends it. */
async function persist(what: () => Promise<void>): Promise<never> {
  for (;;) {
    try {
      await what();
    } catch (error) {
      if (!isDeparture(error)) fault(String((error as Error).stack ?? error));
    }
    await sleep(2);
  }
}

/** Messages of every channel that is opened on a port. */
function serve(port: string, take: (message: Message) => Promise<void> | void): void {
  domain.listen(port, (channel) => void drain(channel, take));
}

async function drain(
  channel: Channel,
  take: (message: Message) => Promise<void> | void,
): Promise<void> {
  try {
    for await (const message of channel) await take(message);
  } catch (error) {
    if (!isDeparture(error)) fault(String((error as Error).stack ?? error));
  }
  channel.close();
}

async function produce(): Promise<void> {
  const outstanding = new Set<number>();
  // Sent when somebody died: they may be acknowledged still, once, or never.
  const doubtful = new Set<number>();
  domain.onPeers = () => {
    for (const sequence of outstanding) doubtful.add(sequence);
    outstanding.clear();
  };
  serve('ack', (message) => {
    const sequence = message.u32[Word.sequence]!;
    if (message.u32[Word.life] === life) {
      acknowledged++;
      if (!outstanding.delete(sequence) && !doubtful.delete(sequence)) {
        fault(`buffer ${sequence} was acknowledged twice`);
      }
    }
    message.release();
  });
  await persist(async () => {
    const channel = await domain.connect('middle', 'pipe', { timeoutMs: 20_000, size: 64 });
    try {
      for (;;) {
        if (paused || outstanding.size >= OUTSTANDING_MAX) {
          await sleep(1);
          if (channel.records.over) throw channel.records.error ?? new Error('ended');
          continue;
        }
        const bytes = 512 * (1 + Math.floor(Math.random() * 256));
        const buffer = domain.alloc(bytes);
        fillBody(buffer.u32, sent, life);
        outstanding.add(sent);
        try {
          await channel.send(buffer, { aux: sent++ });
        } finally {
          if (!buffer.freed) buffer.free();
        }
      }
    } finally {
      channel.close();
    }
  });
}

async function passOn(): Promise<void> {
  let out: Channel | null = null;
  serve('pipe', async (message) => {
    received++;
    try {
      if (out === null) throw new PenstockError('PEER_GONE', 'no consumer now');
      await out.send(message, { aux: message.aux });
    } catch (error) {
      message[Symbol.dispose]();
      if (!isDeparture(error)) fault(String((error as Error).stack ?? error));
    }
  });
  await persist(async () => {
    out = await domain.connect('consumer', 'sink', { timeoutMs: 20_000, size: 64 });
    try {
      while (!out.records.over) await sleep(5);
    } finally {
      out.close();
      out = null;
    }
  });
}

async function consume(): Promise<void> {
  let acks: Channel | null = null;
  const seen = new Set<string>();
  serve('sink', async (message) => {
    received++;
    const words = message.u32;
    const wrong = bodyFault(words, 1);
    if (wrong !== '') fault(wrong);
    if (words[Word.sequence] !== message.aux) fault('a message and its buffer differ');
    const key = `${words[Word.life]}.${message.aux}`;
    if (seen.has(key)) fault(`buffer ${key} came twice`);
    seen.add(key);
    const owner = words[Word.life]!;
    if (Math.random() < 0.2) await sleep(Math.random() * 8);
    // Held: nobody may have written to it.
    const later = bodyFault(words, 1);
    if (later !== '') fault(`while it was held, ${later}`);
    message.release();
    if (acks === null) return;
    const answer = domain.alloc(512);
    fillBody(answer.u32, message.aux, owner);
    try {
      await acks.send(answer);
    } catch (error) {
      if (!answer.freed) answer.free();
      if (!isDeparture(error)) fault(String((error as Error).stack ?? error));
    }
  });
  await persist(async () => {
    acks = await domain.connect('producer', 'ack', { timeoutMs: 20_000 });
    try {
      while (!acks.records.over) await sleep(5);
    } finally {
      acks.close();
      acks = null;
    }
  });
}

/** The chain: a count of buffers in order, as fast as they go. */
async function feedChain(): Promise<void> {
  const channel = await domain.connect('middle', 'pipe', { timeoutMs: 20_000 });
  while (sent < chain) {
    const buffer = domain.alloc(CHAIN_BYTES);
    const { u32 } = buffer;
    if (sent % CHAIN_WHOLE === 0) fillBody(u32, sent, life);
    u32[Word.sequence] = sent;
    u32[Word.addressLo] = buffer.address >>> 0;
    u32[Word.addressHi] = Math.floor(buffer.address / 2 ** 32);
    u32[u32.length - 1] = ~sent;
    if (!channel.trySend(buffer, { aux: sent })) await channel.send(buffer, { aux: sent });
    sent++;
    if (sent % 64 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  while (domain.desk.ledger.holds > 0) {
    domain.desk.service();
    await sleep(1);
  }
  channel.close();
}

async function passChain(): Promise<void> {
  const out = await domain.connect('consumer', 'sink', { timeoutMs: 20_000 });
  serve('pipe', async (message) => {
    received++;
    if (!out.trySend(message, { aux: message.aux })) await out.send(message, { aux: message.aux });
    if (received === chain) out.close();
  });
}

function endChain(): void {
  serve('sink', (message) => {
    const { u32 } = message;
    const address = u32[Word.addressHi]! * 2 ** 32 + u32[Word.addressLo]!;
    if (message.body.address !== address) fault(`buffer ${message.aux} is at another address`);
    if (u32[Word.sequence] !== received || message.aux !== received) fault('out of order');
    if (u32[u32.length - 1] !== ~received >>> 0) fault(`the end of ${received} is another`);
    if (received % CHAIN_WHOLE === 0) {
      const words = u32.subarray(0, u32.length - 1);
      const seed = Math.imul(received + 1, 0x9e3779b1) ^ u32[Word.life]!;
      for (let i = Word.body; i < words.length; i++) {
        if (words[i] !== (seed ^ i) >>> 0) fault(`word ${i} of ${received} is another`);
      }
    }
    received++;
    message.release();
  });
}

function report(ms: number): ChildReport {
  return {
    faults,
    sent,
    acknowledged,
    received,
    lent: domain.desk.ledger.holds,
    held: domain.desk.heldTotal,
    strays: domain.desk.strays,
    copies: statusWords()[StatusWord.copies]!,
    descriptors: readdirSync('/proc/self/fd').map(kindOf),
    ms,
  };
}

function kindOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`).replace(/\d+/g, 'N');
  } catch {
    return 'closed'; // the one that the folder was read by
  }
}

/** Waits until a condition holds, 10 s at most. */
async function until(holds: () => boolean): Promise<number> {
  const start = performance.now();
  while (!holds() && performance.now() - start < 10_000) await sleep(1);
  return performance.now() - start;
}

interface Order {
  what: 'pause' | 'go' | 'quiet' | 'forgotten' | 'report' | 'end';
  slot?: number;
}

async function obey({ what, slot = 0 }: Order): Promise<void> {
  const { desk, links } = domain;
  let ms = 0;
  if (what === 'pause') paused = true;
  if (what === 'go') paused = false;
  if (what === 'quiet') {
    ms = await until(() => {
      desk.service();
      return desk.ledger.holds === 0 && desk.heldTotal === 0;
    });
  }
  // Nothing of a dead domain's is held any more, nor anything by it.
  if (what === 'forgotten') {
    ms = await until(() => {
      const mapped = links.has(slot) || desk.hasFormer(slot);
      return !mapped && desk.ledger.holdsOf(slot) === 0 && desk.ledger.heldVia(slot).length === 0;
    });
  }
  process.send!(report(ms));
  if (what === 'end') process.disconnect();
}

if (role === 'hub') {
  Hub.listen(hubPath);
  process.send!({ ready: true, slot: 0 });
} else {
  domain = await joinDomain(hubPath, { name: role, keepAlive: true, timeoutMs: 20_000 });
  process.on('message', (order: Order) => void obey(order));
  process.send!({ ready: true, slot: domain.slot });
  const work: Record<string, () => Promise<void> | void> =
    chain > 0
      ? { producer: feedChain, middle: passChain, consumer: endChain }
      : { producer: produce, middle: passOn, consumer: consume };
  await work[role]!();
}
