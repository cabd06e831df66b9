// Domain: this process as a member of a hub. It has a slot of the address space, memory that the
// other members map read-only at the same address, a link to each of them, and channels.
//
// One process is one domain, and joins before its first allocation: its place in the address space
// is fixed from then on. The thread that joined is the home of links, loans and friendly channels.

import { PenstockError } from '../errors.js';
import {
  addressSpace,
  type DmaBuffer,
  type Memory,
  type MemoryOptions,
  type Segment,
} from '../memory/index.js';
import { Channel } from './channel.js';
import type { MemberInfo, Session, SessionHome } from './hub-session.js';
import type { HoldSummary } from './ledger.js';
import { Link, type Incoming, type LinkChannel, type LinkWatcher, type PeerInfo } from './link.js';
import type { LinkWire } from './link-wire.js';
import { LoanDesk } from './loan-desk.js';
import { SharedMemory } from './shared-memory.js';
import { sendReport } from './report.js';
import { REPORT_PORT } from './report-read.js';

const CHANNEL_SIZE = 1024;
const CONNECT_MS = 5000;
/** How often slots of the gone are looked at, and loans taken home while nobody asks. */
const TICK_MS = 10;
const TICK_MS_MAX = 50;
const TIMER_MS_MAX = 2 ** 31 - 1;

/** What asks for a channel on a port that is listened on. */
export type Listener = (channel: Channel) => void;

/** A listener that decides by itself, and may take raw channels. */
export type RawListener = (incoming: Incoming) => void;

export interface LoanReport {
  /** What others have of this domain's memory, by consumer. */
  readonly lent: readonly HoldSummary[];
  /** Loans that this domain has, by owner. */
  readonly held: readonly { owner: number; name: string; loans: number }[];
}

export class Domain {
  readonly hub: string;
  readonly name: string;
  /** Shared with all members that may have a link with this one. */
  readonly memory: Memory;
  readonly desk: LoanDesk;
  /** @internal */
  readonly shared: SharedMemory;
  /** Links by slot, until the process at the other end is dead or has left. */
  readonly links = new Map<number, Link>();
  private readonly session: Session;
  private place = { slot: 0, generation: 0 };
  private readonly channels = new Set<Channel>();
  private readonly listeners = new Map<string, RawListener>();
  private readonly waiting = new Set<() => void>();
  private readonly watchers = new Set<LinkWatcher>();
  /** Generations of domains that are gone and whose slots are still held here. */
  private readonly leaving = new Map<number, number>();
  /** The last life of each slot that is known to be over. */
  private readonly over = new Map<number, number>();
  private timer: NodeJS.Timeout | null = null;
  private listening: NodeJS.Timeout | null = null;
  private tickMs = TICK_MS;
  private closed = false;
  /** What services of this domain add to its report, by name; called when somebody asks. */
  readonly reporters = new Map<string, () => unknown>();
  /** Called when a member comes or goes. */
  onPeers: (() => void) | null = null;

  /** Use joinDomain. */
  constructor(
    hub: string,
    name: string,
    memory: MemoryOptions,
    connect: (home: SessionHome) => Session,
  ) {
    this.hub = hub;
    this.name = name;
    this.shared = new SharedMemory(
      memory,
      () => this.desk.service(),
      (segment) => this.announce(segment),
    );
    this.memory = this.shared.memory;
    this.desk = new LoanDesk(this);
    this.session = connect({
      onPlace: (place) => (this.place = place),
      onPeer: (peer, wire) => this.onPeer(peer, wire),
      onGone: (slot, generation, left) => this.onGone(slot, generation, left),
      known: () => this.known(),
    });
  }

  /** @internal */
  async start(timeoutMs: number): Promise<void> {
    await this.session.join(timeoutMs);
  }

  /** Number of this domain: its memory is [slot · 2^36, (slot + 1) · 2^36). */
  get slot(): number {
    return this.place.slot;
  }

  get isClosed(): boolean {
    return this.closed;
  }

  get generation(): number {
    return this.place.generation;
  }

  /** Members that this one has a link with. */
  get peers(): PeerInfo[] {
    return [...this.links.values()].filter((link) => link.isReady).map((link) => link.peer);
  }

  /** Whether the hub can be reached; links and channels go on without it. */
  get hubConnected(): boolean {
    return this.session.connected;
  }

  /** A buffer that other domains can read once it is sent to them. Errors: OUT_OF_MEMORY. */
  alloc(bytes: number): DmaBuffer {
    return this.memory.alloc(bytes);
  }

  /** Everybody in the hub, this domain included. */
  members(): Promise<MemberInfo[]> {
    return this.session.members();
  }

  /** Takes channels that others open on a port. */
  listen(port: string, listener: Listener): void {
    this.listenRaw(port, (incoming) => {
      const link = this.links.get(incoming.peer.slot)!;
      listener(this.adopt(link, incoming.accept(), port, incoming.meta));
    });
  }

  /**
   * The same, for who decides by itself and takes records. `null` stops listening. A domain that
   * listens keeps its process alive.
   */
  listenRaw(port: string, listener: RawListener | null): void {
    if (listener === null) this.listeners.delete(port);
    else this.listeners.set(port, listener);
    // As a server's socket does: who listens is not done.
    if (this.listeners.size > 0 && !this.closed) {
      this.listening ??= setInterval(() => {}, TIMER_MS_MAX);
    } else if (this.listening !== null) {
      clearInterval(this.listening);
      this.listening = null;
    }
  }

  /**
   * Opens a channel to a port of another domain, which may still be about to come. `size`: records
   * of each ring. Errors: TIMED_OUT, NO_SUCH_PORT, PEER_GONE, and what the other side says.
   */
  async connect(
    peer: string,
    port: string,
    options: { size?: number; meta?: string; timeoutMs?: number } = {},
  ): Promise<Channel> {
    return this.connectWith(peer, port, options, (made, link) => {
      return this.adopt(link, made, port, made.meta);
    });
  }

  /** The same, as raw records. */
  async connectRaw(
    peer: string,
    port: string,
    options: { size?: number; meta?: string; timeoutMs?: number } = {},
  ): Promise<LinkChannel & { readonly link: Link }> {
    return this.connectWith(peer, port, options, (made, link) => ({ ...made, link }));
  }

  private async connectWith<T>(
    peer: string,
    port: string,
    options: { size?: number; meta?: string; timeoutMs?: number },
    wrap: (made: LinkChannel, link: Link) => T,
  ): Promise<T> {
    const { size = CHANNEL_SIZE, meta = '', timeoutMs = CONNECT_MS } = options;
    const until = performance.now() + timeoutMs;
    const link = await this.linkTo(peer, timeoutMs);
    const leftMs = Math.max(1, Math.round(until - performance.now()));
    const asked = { size, meta, timeoutMs: leftMs };
    return link.connectAs(port, asked, (made) => wrap(made, link));
  }

  /**
   * The link with a domain of that name, once there is one. Errors: TIMED_OUT, and the reason of
   * `signal` when that ends the wait.
   */
  async linkTo(name: string, timeoutMs = CONNECT_MS, signal?: AbortSignal): Promise<Link> {
    const until = performance.now() + timeoutMs;
    for (;;) {
      signal?.throwIfAborted();
      for (const link of this.links.values()) {
        if (link.peer.name === name && link.isReady) return link;
      }
      this.assertOpen();
      const leftMs = until - performance.now();
      if (leftMs <= 0) {
        throw new PenstockError('TIMED_OUT', `no domain ${name} came within ${timeoutMs} ms`, {
          hint: `penstock idc ls ${this.hub} shows who is there; it may not share with this domain`,
        });
      }
      await this.somebody(leftMs, signal);
    }
  }

  /** The function that it gives ends the watch. */
  watchLinks(watcher: LinkWatcher): () => void {
    this.watchers.add(watcher);
    return () => void this.watchers.delete(watcher);
  }

  /** Loans out and in, oldest first by age: what does not come back shows here. */
  loans(): LoanReport {
    this.desk.service();
    const nameOf = (slot: number): string => this.links.get(slot)?.peer.name ?? `domain ${slot}`;
    const owners = [...this.links.keys(), this.slot];
    return {
      lent: this.desk.ledger.summary(),
      held: owners
        .map((owner) => ({ owner, name: nameOf(owner), loans: this.desk.heldOf(owner) }))
        .filter(({ loans }) => loans > 0),
    };
  }

  /** Closes channels and links, leaves the hub, and gives the memory back. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    for (const channel of [...this.channels]) channel.close();
    for (const link of this.links.values()) link.leave();
    for (const link of this.links.values()) link.dispose();
    this.links.clear();
    this.session.close();
    if (this.listening !== null) clearInterval(this.listening);
    if (this.timer !== null) clearTimeout(this.timer);
    this.wakeWaiting();
    this.shared.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal */
  ownSegmentAt(address: number): Segment | undefined {
    return this.shared.segmentAt(address);
  }

  /** @internal */
  isGone(slot: number, generation: number): boolean {
    const last = this.over.get(slot) ?? 0;
    if (last === generation) return true;
    // Where a hub counts generations, those below one that was seen are over.
    const now = this.links.get(slot)?.peer.generation ?? 0;
    return !this.session.lasting && (last > generation || now > generation);
  }

  /** @internal */
  takeAll(slot: number): void {
    for (const channel of this.channels) if (channel.peer.slot === slot) channel.takeAll();
  }

  /** @internal */
  wantService(): void {
    if (this.timer === null) this.tickSoon();
  }

  /** @internal */
  onChannelClosed(channel: Channel): void {
    this.channels.delete(channel);
  }

  /** @internal */
  onReady(link: Link): void {
    this.desk.greeted(link);
    this.wakeWaiting();
    this.onPeers?.();
  }

  /** @internal */
  onIncoming(link: Link, incoming: Incoming): void {
    if (incoming.port === REPORT_PORT) {
      this.channels.add(sendReport(this, link, incoming));
      return;
    }
    const listener = this.listeners.get(incoming.port);
    if (listener !== undefined) {
      listener(incoming);
      return;
    }
    const ports = [...this.listeners.keys()];
    incoming.refuse(
      'NO_SUCH_PORT',
      `domain ${this.name} does not listen on port ${incoming.port}`,
      ports.length === 0 ? 'it listens on none' : `it listens on ${ports.join(', ')}`,
    );
  }

  /** @internal */
  onAudit(link: Link, via: number, holds: readonly number[]): void {
    this.desk.askedAudit(link, via, holds);
  }

  /** @internal */
  usesMemoryOf(slot: number): boolean {
    for (const watcher of this.watchers) if (watcher.usesMemoryOf?.(slot) === true) return true;
    return false;
  }

  /** @internal */
  onOver(link: Link): void {
    for (const watcher of [...this.watchers]) watcher.onOver?.(link);
    this.onPeers?.();
    this.wakeWaiting();
  }

  /** @internal What was sent before the death is taken, then what the dead one held. */
  onDead(link: Link): void {
    const { slot, generation } = link.peer;
    this.over.set(slot, generation);
    this.takeAll(slot);
    this.desk.gone(link);
    this.links.delete(slot);
    for (const watcher of [...this.watchers]) watcher.onDead?.(link);
    this.desk.keepFormer(link);
    this.desk.answerAudits();
    this.leaving.set(slot, generation);
    this.tickSoon();
  }

  private adopt(link: Link, made: LinkChannel, port: string, meta: string): Channel {
    const channel = new Channel(this, link, made.records, port, meta);
    this.channels.add(channel);
    return channel;
  }

  private announce(segment: Segment): void {
    for (const link of this.links.values()) if (link.error === null) link.announce(segment);
  }

  private onPeer(peer: PeerInfo, wire: LinkWire): void {
    this.links.get(peer.slot)?.dispose();
    const link = new Link(this, peer, wire);
    // After the link has made its loan ring, for which there may be a new segment.
    for (const segment of this.shared.segments) link.announce(segment);
    this.links.set(peer.slot, link);
    link.greet();
  }

  /** The hub says so; the link's own pidfd does, too, before or after. */
  private onGone(slot: number, generation: number, left: boolean): void {
    const link = this.links.get(slot);
    if (link !== undefined && link.peer.generation === generation) {
      link.kicked(left);
      return;
    }
    this.over.set(slot, generation);
    this.leaving.set(slot, generation);
    this.tickSoon();
  }

  /** Slots and generations of whom it has links with, and of the gone that it still holds. */
  private known(): [number, number][] {
    const known = new Map(this.leaving);
    for (const { peer } of this.links.values()) known.set(peer.slot, peer.generation);
    return [...known];
  }

  /** Whether anything of a slot is still held here. */
  private holds(slot: number): boolean {
    const { desk } = this;
    if (desk.hasFormer(slot) || desk.ledger.holdsOf(slot) > 0) return true;
    if (desk.ledger.heldVia(slot).length > 0) return true;
    return !this.session.lasting && addressSpace().holds(slot);
  }

  private tick(): void {
    this.timer = null;
    const came = this.desk.service();
    for (const [slot, generation] of this.leaving) {
      this.desk.unmapFormer(slot);
      if (this.links.has(slot) || this.holds(slot)) continue;
      this.leaving.delete(slot);
      this.session.released(slot, generation);
    }
    let lingers = false;
    for (const link of this.links.values()) {
      link.sweep();
      lingers ||= link.lingers;
    }
    this.tickMs = came ? TICK_MS : Math.min(TICK_MS_MAX, this.tickMs * 2);
    if (this.leaving.size > 0 || lingers || this.desk.busy) this.schedule();
  }

  /** Something happened that the next look should find soon. */
  private tickSoon(): void {
    if (this.timer !== null) clearTimeout(this.timer);
    this.timer = null;
    this.tickMs = TICK_MS;
    this.schedule();
  }

  private schedule(): void {
    if (this.closed) return;
    this.timer ??= setTimeout(() => this.tick(), this.tickMs).unref();
  }

  private somebody(leftMs: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', done);
        this.waiting.delete(done);
        resolve();
      };
      const timer = setTimeout(done, Math.min(leftMs, 2 ** 30));
      this.waiting.add(done);
      signal?.addEventListener('abort', done);
    });
  }

  private wakeWaiting(): void {
    for (const done of [...this.waiting]) done();
  }

  private assertOpen(): void {
    if (!this.closed) return;
    throw new PenstockError('DOMAIN_CLOSED', `domain ${this.name} was closed`, {
      hint: 'a process joins once; keep the domain open as long as it is used',
    });
  }
}
