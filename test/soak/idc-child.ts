// A domain of the soaks: `idc-child.js ROLE HUB LIFE`, told what to do over its IPC channel.
//
//   producer → middle → consumer → producer (acknowledgements)
//
// All of them connect again whenever a peer is gone, and note down what must never be.

import { readdirSync, readlinkSync } from 'node:fs';
import { PenstockError } from '../../lib/errors.js';
import { Hub, joinDomain, type Channel, type Domain, type Message } from '../../lib/idc/index.js';
import { addressSpace, statusWords, StatusWord } from '../../lib/memory/index.js';
import { sleep } from './harness.js';
import { bodyFault, fillBody, Word, type ChildReport } from './idc-words.js';

const [, , role = '', hubPath = '', lifeText = '0'] = process.argv;
const life = Number(lifeText);
const OUTSTANDING_MAX = 48;
const DOUBT_MS = 500;

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
  const doubt = (): void => {
    for (const sequence of outstanding) doubtful.add(sequence);
    outstanding.clear();
  };
  domain.onPeers = doubt;
  let fullSince = 0;
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
        if (outstanding.size < OUTSTANDING_MAX) fullSince = performance.now();
        // The consumer had no way to tell: it was not connected yet.
        else if (performance.now() - fullSince > DOUBT_MS) doubt();
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
    const wrong = bodyFault(words);
    if (wrong !== '') fault(wrong);
    if (words[Word.sequence] !== message.aux) fault('a message and its buffer differ');
    const key = `${words[Word.life]}.${message.aux}`;
    if (seen.has(key)) fault(`buffer ${key} came twice`);
    seen.add(key);
    const owner = words[Word.life]!;
    if (Math.random() < 0.2) await sleep(Math.random() * 8);
    // Held: nobody may have written to it.
    const later = bodyFault(words);
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
    descriptors: readdirSync('/proc/self/fd')
      .map(kindOf)
      .filter((kind) => !kind.includes('memfd')),
    orphans: orphans(),
    ms,
  };
}

/** Segments of domains that there is no link with. */
function orphans(): number {
  const isOrphan = ({ address }: { address: number }): boolean => {
    const slot = Math.floor(address / 2 ** 36);
    return slot !== domain.slot && !domain.links.has(slot);
  };
  return addressSpace().list().filter(isOrphan).length;
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
  const work: Record<string, () => Promise<void>> = {
    producer: produce,
    middle: passOn,
    consumer: consume,
  };
  await work[role]!();
}
