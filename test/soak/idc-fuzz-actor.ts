// A process of the fuzz over domains: it waits until it is told what to be.
//
// honest: serves and asks whoever there is, looks at all that it gets, lends, holds, passes on.
// What must never be it reports as `failed`. friend: talks with the honest one, and checks every
// word. hostile: joins as anybody, and writes to its own memory at random from then on.

import { PenstockError } from '../../lib/errors.js';
import { Hub, joinDomain, type Channel, type Domain, type Message } from '../../lib/idc/index.js';
import { addressSpace, defaultMemory } from '../../lib/memory/index.js';
import { footprint, Random, sleep } from './harness.js';
import { Scribbler, type Target } from './idc-fuzz-scribble.js';

type Order =
  | { role: 'hub' | 'honest' | 'friend'; path: string }
  | { role: 'hostile'; path: string; mode: string; seed: number; writes: number }
  | { order: 'rest'; taken: number; mapped: number }
  | { order: 'go' | 'more' };

const SLOT_BYTES = 2 ** 36;
const SECRET = 0x5ec7e75e;
const HOLD_MS = 4;
const ASK = { size: 64, timeoutMs: 500 };
const FRIEND_ROUNDS = 20;
const FRIEND_WORDS = 256;
/** How a hostile or dead peer may show; what it refuses with is its own choice. */
const ENDS = ['PEER_MISBEHAVED', 'PEER_GONE', 'PEER_STUCK', 'CHANNEL_CLOSED', 'TIMED_OUT'];

const ends: Record<string, number> = {};

function report(kind: string, more: object = {}): void {
  process.send!({ kind, ...more }, () => {});
}

function fail(error: unknown): void {
  report('failed', { text: error instanceof Error ? (error.stack ?? error.message) : error });
}

/** Ends of channels are counted; everything else is a failure. */
function expectEnd(error: unknown): void {
  if (!(error instanceof PenstockError) || !ENDS.includes(error.code)) {
    fail(error);
    return;
  }
  ends[error.code] = (ends[error.code] ?? 0) + 1;
}

class Honest {
  private readonly domain: Domain;
  private readonly random = new Random(1);
  private paused = false;
  private busy = 0;
  /** Memory that nobody was given: an address in it in a message would be a foreign read. */
  private readonly secret = defaultMemory().alloc(65536);

  constructor(domain: Domain) {
    this.domain = domain;
    this.secret.u32.fill(SECRET);
    domain.listen('load', (channel) => void this.serve(channel));
    domain.listen('echo', (channel) => void this.echo(channel));
    void this.ask();
    void this.askRaw();
  }

  /** `taken`, `mapped`: buffers and segments of others that there are at rest. */
  pause(taken: number, mapped: number): void {
    this.paused = true;
    void this.rest(taken, mapped);
  }

  goOn(): void {
    this.paused = false;
  }

  private async serve(channel: Channel): Promise<void> {
    try {
      for await (const message of channel) void this.use(message);
    } catch (error) {
      expectEnd(error);
    }
    channel.close();
  }

  private async echo(channel: Channel): Promise<void> {
    try {
      for await (const message of channel) await message.reply(message, { aux: message.aux });
    } catch (error) {
      expectEnd(error);
    }
    channel.close();
  }

  /** One of all that can be done with a message. */
  private async use(message: Message): Promise<void> {
    this.busy++;
    try {
      this.look(message);
      const choice = this.random.below(4);
      if (choice === 0) await sleep(this.random.below(HOLD_MS));
      if (choice === 1 && message.tag !== 0) await message.reply(message);
      else if (choice === 2 && message.tag !== 0) await this.answer(message);
      this.look(message);
    } catch (error) {
      expectEnd(error);
    } finally {
      message[Symbol.dispose]();
      this.busy--;
    }
  }

  private async answer(message: Message): Promise<void> {
    const buffer = this.domain.alloc(512);
    try {
      await message.reply(buffer);
    } finally {
      if (!buffer.freed) buffer.free(); // it was not sent, and so is its sender's
    }
  }

  /** Reads all of it: an address that is not mapped ends this process. */
  private look(message: Message): void {
    if (message.body.released) return;
    const { address, bytes, owner } = message.body;
    const { secret } = this;
    if (address < secret.address + secret.bytes && address + bytes > secret.address) {
      fail(`a message lies in private memory, at 0x${address.toString(16)}`);
    }
    if (Math.floor(address / SLOT_BYTES) !== owner) fail('a message lies in another slot');
    const { u32 } = message;
    let sum = 0;
    for (let i = 0; i < u32.length; i += 16) sum = (sum + u32[i]!) | 0;
    if (u32.length > 0 && u32[0] === SECRET && sum === 0) fail('a secret was read');
  }

  private async ask(): Promise<void> {
    for (;;) {
      try {
        const channel = await this.reach(() => this.domain.connect('hostile', 'load', ASK));
        if (channel === null) continue;
        try {
          while (!channel.records.over) await this.askOnce(channel);
        } finally {
          channel.close();
        }
      } catch (error) {
        expectEnd(error);
      }
      await sleep(2);
    }
  }

  /** A channel to the hostile one; null a while after it could not be had, for whatever reason. */
  private async reach<T>(connect: () => Promise<T>): Promise<T | null> {
    try {
      return await connect();
    } catch (error) {
      if (error instanceof PenstockError) ends[error.code] = (ends[error.code] ?? 0) + 1;
      else fail(error);
      await sleep(2);
      return null;
    }
  }

  private async askOnce(channel: Channel): Promise<void> {
    if (this.paused) {
      await sleep(1);
      return;
    }
    this.busy++;
    const buffer = this.domain.alloc(512 * (1 + this.random.below(8)));
    try {
      const answer = await channel.request(buffer, { timeoutMs: 100 });
      this.look(answer);
      answer[Symbol.dispose]();
    } finally {
      if (!buffer.freed) buffer.free();
      this.busy--;
    }
  }

  /** The hot path against a hostile ring. */
  private async askRaw(): Promise<void> {
    for (;;) {
      try {
        const raw = await this.reach(() => this.domain.connectRaw('hostile', 'raw', ASK));
        if (raw === null) continue;
        const { records } = raw;
        try {
          while (!records.over) {
            if (this.paused) {
              await sleep(1);
              continue;
            }
            const at = records.tail;
            const granted = records.reserve(1 + this.random.below(100));
            if (granted > records.size) fail(`${granted} records granted of ${records.size}`);
            for (let i = 0; i < granted; i++) records.sq[((at + i) & records.mask) * 8] = i;
            if (granted > 0) records.submit();
            await sleep(0);
            const count = await records.wait(this.random.below(5));
            if (count > records.size) fail(`${count} records received of ${records.size}`);
          }
          if (records.error !== null) throw records.error;
        } finally {
          records.close();
        }
      } catch (error) {
        expectEnd(error);
      }
      await sleep(2);
    }
  }

  /** Comes to rest once the hostile one is gone, and counts what it has. */
  private async rest(taken: number, mapped: number): Promise<void> {
    const { desk, memory, links } = this.domain;
    const end = performance.now() + 10_000;
    for (let still = 0; still < 5 && performance.now() < end;) {
      await sleep(4);
      desk.service();
      const isQuiet = this.busy === 0 && desk.ledger.holds === 0 && desk.heldTotal === 0;
      const isHome = memory.taken <= taken && mappedSegments() <= mapped;
      still = isQuiet && isHome && links.size === 1 ? still + 1 : 0;
    }
    if (this.secret.u32.some((word) => word !== SECRET)) fail('private memory was written');
    report('rest', {
      lent: desk.ledger.holds,
      held: desk.heldTotal,
      taken: memory.taken,
      links: links.size,
      mapped: mappedSegments(),
      descriptors: footprint().descriptors.filter((kind) => !/^closed|memfd/.test(kind)),
      ends,
    });
  }
}

/** Segments of other domains. */
function mappedSegments(): number {
  return addressSpace()
    .list()
    .filter(({ kind }) => kind === 4).length;
}

/** Talks with the honest one about whole buffers. */
async function befriend(domain: Domain): Promise<() => Promise<void>> {
  const channel = await domain.connect('honest', 'echo', { timeoutMs: 20_000 });
  let sequence = 0;
  return async () => {
    for (let round = 0; round < FRIEND_ROUNDS; round++) {
      const buffer = domain.alloc(FRIEND_WORDS * 4);
      const { address } = buffer;
      sequence++;
      for (let i = 0; i < FRIEND_WORDS; i++) buffer.u32[i] = Math.imul(sequence, i + 1);
      const answer = await channel.request(buffer, { aux: sequence, timeoutMs: 10_000 });
      const { u32 } = answer;
      if (answer.body.address !== address || answer.aux !== sequence) fail('another answer');
      for (let i = 0; i < FRIEND_WORDS; i++) {
        if (u32[i] !== Math.imul(sequence, i + 1) >>> 0) fail(`word ${i} of ${sequence} changed`);
      }
      answer.release();
    }
    report('more');
  };
}

/** Speaks as anybody does, so that there is something to spoil; nothing stops it. */
async function beHostile(order: Extract<Order, { role: 'hostile' }>): Promise<void> {
  process.on('uncaughtException', () => {});
  process.on('unhandledRejection', () => {});
  const domain = await joinDomain(order.path, { name: 'hostile', timeoutMs: 20_000 });
  const random = new Random(order.seed);
  domain.listen('load', (channel) => void answerSome(channel, domain, random));
  domain.listenRaw('raw', (incoming) => void pump(incoming.accept(), random));
  void sendOn(domain, random);
  const scribbler = new Scribbler(random, order.mode, domain as unknown as Target);
  for (let writes = 0; writes < order.writes;) {
    await sleep(1);
    try {
      writes += scribbler.go(200);
    } catch (error) {
      // Its own library may mind what was written.
      if (!(error instanceof PenstockError)) fail(error);
      writes++;
    }
    report('writes', { writes });
  }
}

async function answerSome(channel: Channel, domain: Domain, random: Random): Promise<void> {
  for await (const message of channel) {
    if (random.chance(0.5)) await message.reply(random.chance(0.5) ? message : domain.alloc(512));
    else if (random.chance(0.5)) message.release();
  }
}

async function pump({ records }: { records: Channel['records'] }, random: Random): Promise<void> {
  while (!records.over) {
    await sleep(0); // a wait that finds records does not give the loop its turn
    await records.wait(5);
    if (records.reserve(random.below(4)) > 0) records.submit();
  }
}

async function sendOn(domain: Domain, random: Random): Promise<void> {
  for (;;) {
    try {
      const channel = await domain.connect('honest', 'load', { size: 64 });
      while (!channel.records.over) {
        for (let i = random.below(8); i > 0; i--) channel.trySend(domain.alloc(512));
        if (random.chance(0.2)) void channel.request(domain.alloc(512), { timeoutMs: 50 });
        await sleep(1);
      }
      channel.close();
    } catch {
      await sleep(5);
    }
  }
}

let honest: Honest | undefined;
let more: (() => Promise<void>) | undefined;

async function obey(order: Order): Promise<void> {
  if ('order' in order) {
    if (order.order === 'more') await more!();
    else if (order.order === 'rest') honest!.pause(order.taken, order.mapped);
    else honest!.goOn();
    return;
  }
  if (order.role === 'hostile') return beHostile(order);
  process.on('unhandledRejection', fail);
  process.on('uncaughtException', fail);
  if (order.role === 'hub') Hub.listen(order.path);
  else {
    const domain = await joinDomain(order.path, { name: order.role, keepAlive: true });
    if (order.role === 'honest') honest = new Honest(domain);
    else more = await befriend(domain);
  }
  report('ready');
}

process.on('message', (order: Order) => void obey(order).catch(fail));
process.on('disconnect', () => process.exit());
