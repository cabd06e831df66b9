// A process of the kill soak over domains: it waits until it is told to be a hub or a member, and
// is then one until it is killed. What is wrong it reports, and ends.
//
// Members ask each other without end. Each message is a buffer with a pattern that says whose it is
// and which; whoever has it looks at it when it comes and again before it gives it back, so a
// buffer that was used again meanwhile shows. Requests count up on each channel: a lost or repeated
// one shows, too.

import { Channel, Hub, joinDomain, Message, type Domain } from '../../lib/idc/index.js';
import type { DmaBuffer } from '../../lib/memory/index.js';
import { addressSpace } from '../../lib/memory/index.js';
import { footprint, Random, sleep } from './harness.js';

const NAMES = ['p', 'm', 'c'];
const BYTES = 4096;
const MAGIC = 0x6964636b;
/** Requests under way on a channel. */
const WINDOW = 6;
/** Now and then who asks waits: starting processes takes the processors, too. */
const PAUSE_CHANCE = 0.25;
const PAUSE_MS = 4;
const HOLD_MS = 10;
/** What an end of the other side looks like. */
const ENDS = new Set(['PEER_GONE', 'CHANNEL_CLOSED', 'TIMED_OUT', 'NO_SUCH_PORT']);

type Order =
  | { kind: 'hub'; path: string }
  | { kind: 'join'; path: string; name: string; seed: number }
  | { kind: 'pause' }
  | { kind: 'resume' };

/** What the asked one is to do with a request. */
const enum Wish {
  echo = 0,
  hold = 1,
  passOn = 2,
  kinds = 3,
}

function report(kind: string, more: object = {}): void {
  process.send!({ kind, ...more }, () => {});
}

function fail(error: unknown): void {
  report('failed', { text: error instanceof Error ? (error.stack ?? error.message) : error });
  process.exitCode = 1;
  setTimeout(() => process.exit(1), 50);
}

const codeOf = (error: unknown): string => (error as { code?: string }).code ?? '';

/** Microseconds on a clock that all processes share. */
const clock = (): number => Number(process.hrtime.bigint() / 1000n);

class Member {
  private readonly domain: Domain;
  private readonly random: Random;
  private readonly others: string[];
  private paused = false;
  /** Requests, holds and passings that are not done. */
  private busy = 0;
  private sequence = 0;
  private readonly up: Record<string, number> = {};
  private readonly forwards: Record<string, Channel> = {};

  constructor(domain: Domain, seed: number) {
    this.domain = domain;
    this.random = new Random(seed);
    this.others = NAMES.filter((name) => name !== domain.name);
    domain.listen('load', (channel) => this.guard(this.serve(channel)));
    domain.listen('forward', (channel) => this.guard(this.keepAll(channel)));
    domain.watchLinks({ onDead: ({ peer }) => this.guard(this.watchDeath(peer)) });
    for (const name of this.others) {
      this.guard(this.load(name));
      this.guard(this.keepForward(name));
    }
  }

  pause(): void {
    this.paused = true;
    this.guard(this.quiet());
  }

  resume(): void {
    this.paused = false;
  }

  private guard(work: Promise<void>): void {
    work.catch(fail);
  }

  /** Asks one other member, through all of its lives. */
  private async load(name: string): Promise<void> {
    for (;;) {
      let channel: Channel;
      try {
        channel = await this.domain.connect(name, 'load', { size: 64 });
      } catch (error) {
        if (!ENDS.has(codeOf(error))) throw error;
        await sleep(1);
        continue;
      }
      this.up[name] = channel.peer.generation;
      this.tellUp();
      const asking = Array.from({ length: WINDOW }, () => this.ask(channel));
      this.next.set(channel, 0);
      await Promise.all(asking);
      channel.close();
    }
  }

  private readonly next = new Map<Channel, number>();

  private async ask(channel: Channel): Promise<void> {
    await sleep(0);
    for (;;) {
      while (this.paused) await sleep(1);
      if (this.random.chance(PAUSE_CHANCE)) await sleep(this.random.below(PAUSE_MS));
      this.busy++;
      const buffer = this.stamped(BYTES);
      const sequence = this.next.get(channel)! + 1;
      this.next.set(channel, sequence);
      try {
        const wish = this.random.below(Wish.kinds);
        const answer = await channel.request(buffer, { aux: sequence, aux2: wish });
        this.look(answer);
        if (answer.aux !== sequence) throw new Error(`${answer.aux} answers ${sequence}`);
        answer.release();
      } catch (error) {
        if (!buffer.freed) buffer.free();
        if (!ENDS.has(codeOf(error))) throw error;
        this.next.delete(channel);
        return;
      } finally {
        this.busy--;
      }
    }
  }

  private async serve(channel: Channel): Promise<void> {
    let last = 0;
    try {
      for await (const message of channel) {
        if (message.aux !== ++last) throw new Error(`request ${message.aux} came as ${last}`);
        this.look(message);
        this.guard(this.answer(message));
      }
    } catch (error) {
      if (!ENDS.has(codeOf(error))) throw error;
    }
    channel.close();
  }

  private async answer(message: Message): Promise<void> {
    this.busy++;
    const { aux } = message;
    let small: DmaBuffer | undefined;
    try {
      if (message.aux2 === Wish.echo) {
        await message.reply(message, { aux });
        return;
      }
      if (message.aux2 === Wish.passOn) {
        const third = this.others.find((name) => name !== message.channel.peer.name)!;
        const forward = this.forwards[third];
        if (forward !== undefined) await this.orGone(forward.send(message));
      } else {
        await sleep(this.random.below(HOLD_MS));
        this.look(message);
      }
      if (!message.body.released) message.release();
      small = this.stamped(64);
      await message.reply(small, { aux });
    } catch (error) {
      if (!ENDS.has(codeOf(error))) throw error;
    } finally {
      message[Symbol.dispose]();
      if (small !== undefined && !small.freed) small.free();
      this.busy--;
    }
  }

  private async orGone(work: Promise<void>): Promise<void> {
    try {
      await work;
    } catch (error) {
      if (!ENDS.has(codeOf(error))) throw error;
    }
  }

  /** Holds what is passed on to it for a while. */
  private async keepAll(channel: Channel): Promise<void> {
    try {
      for await (const message of channel) this.guard(this.keep(message));
    } catch (error) {
      if (!ENDS.has(codeOf(error))) throw error;
    }
    channel.close();
  }

  private async keep(message: Message): Promise<void> {
    this.busy++;
    this.look(message);
    await sleep(this.random.below(HOLD_MS));
    this.look(message);
    message.release();
    this.busy--;
  }

  private async keepForward(name: string): Promise<void> {
    for (;;) {
      try {
        const channel = await this.domain.connect(name, 'forward', { size: 64 });
        this.forwards[name] = channel;
        this.tellUp();
        await channel.receive();
      } catch (error) {
        if (!ENDS.has(codeOf(error))) throw error;
        await sleep(1);
      }
      this.forwards[name]?.close();
      delete this.forwards[name];
    }
  }

  private stamped(bytes: number): DmaBuffer {
    const buffer = this.domain.alloc(bytes);
    const { u32 } = buffer;
    const { slot, generation } = this.domain;
    const sequence = ++this.sequence;
    u32[0] = MAGIC;
    u32[1] = slot;
    u32[2] = generation;
    u32[3] = sequence;
    const word = Math.imul(generation ^ sequence, 0x9e3779b1);
    for (let i = 4; i < u32.length; i++) u32[i] = word + i;
    return buffer;
  }

  private look({ body }: Message): void {
    const { u32, owner, ownerGeneration } = body;
    const word = Math.imul(u32[2]! ^ u32[3]!, 0x9e3779b1);
    let wrong = u32[0] === MAGIC && u32[1] === owner && u32[2] === ownerGeneration ? 0 : 1;
    for (let i = 4; i < u32.length; i++) if (u32[i] !== (word + i) >>> 0) wrong++;
    if (wrong === 0) return;
    const head = Array.from({ length: 6 }, (_, i) => u32[i]!.toString(16)).join(' ');
    throw new Error(
      `${this.domain.name}: ${wrong} wrong words of ${u32.length} in ` +
        `0x${body.address.toString(16)} of ${owner}/${ownerGeneration} by ${body.via}: ${head}`,
    );
  }

  private tellUp(): void {
    const ready = this.others.every((name) => {
      const forward = this.forwards[name];
      return forward !== undefined && forward.peer.generation === this.up[name];
    });
    if (ready) report('up', { generation: this.domain.generation, peers: { ...this.up } });
  }

  /** Reports when nothing of a dead member is in the book, and when its memory is gone. */
  private async watchDeath({ slot, generation }: { slot: number; generation: number }) {
    const { ledger } = this.domain.desk;
    // Another life may have the slot by then, and holds of its own: the dead one's are gone first.
    const isBack = (): boolean => this.domain.links.get(slot)?.peer.generation !== undefined;
    while (!isBack() && (ledger.holdsOf(slot) > 0 || ledger.heldVia(slot).length > 0)) {
      await sleep(1);
    }
    const clearAt = clock();
    while (!isBack() && mappedOf(slot) > 0) await sleep(1);
    report(`dead ${generation}`, { clearAt, unmappedAt: clock() });
  }

  /** Everything comes to rest while nobody asks; then it is counted. */
  private async quiet(): Promise<void> {
    const { desk, memory } = this.domain;
    const end = performance.now() + 5000;
    for (let still = 0; still < 3 && performance.now() < end;) {
      await sleep(2);
      still = this.busy === 0 && desk.ledger.holds === 0 && desk.heldTotal === 0 ? still + 1 : 0;
    }
    report('quiet', {
      busy: this.busy,
      lent: desk.ledger.holds,
      held: desk.heldTotal,
      taken: memory.taken,
      strays: desk.strays,
      descriptors: footprint()
        .descriptors.filter((kind) => kind !== 'closed')
        .sort(),
      links: this.domain.links.size,
    });
  }
}

function mappedOf(slot: number): number {
  return addressSpace()
    .list()
    .filter(({ address }) => Math.floor(address / 2 ** 36) === slot).length;
}

async function join(path: string, name: string): Promise<Domain> {
  for (;;) {
    try {
      return await joinDomain(path, { name, timeoutMs: 10_000 });
    } catch (error) {
      // The hub is away, or has not seen yet that the one before is dead.
      if (codeOf(error) !== 'NO_HUB' && codeOf(error) !== 'NAME_TAKEN') throw error;
      await sleep(2);
    }
  }
}

let member: Member | undefined;

async function obey(order: Order): Promise<void> {
  if (order.kind === 'hub') {
    const log = (line: string): void => console.log(`${clock() % 1e8} ${line}`);
    Hub.listen(order.path, { log });
    log('starts');
    report('listens');
  } else if (order.kind === 'join') {
    const domain = await join(order.path, order.name);
    member = new Member(domain, order.seed);
    report('joined', { slot: domain.slot, generation: domain.generation });
  } else if (order.kind === 'pause') member!.pause();
  else member!.resume();
}

process.on('unhandledRejection', fail);
process.on('uncaughtException', fail);
process.on('message', (order: Order) => void obey(order).catch(fail));
process.on('disconnect', () => process.exit());
report('ready');
