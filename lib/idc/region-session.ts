// RegionSession: domains that share nothing but memory, as virtual machines and their host do. Each
// has a region of its own and maps the others'; who is there, and whether it lives, stands in their
// headers, and control messages go by mailboxes. There is no hub, and nobody is woken: sleepers
// look from time to time.

import { errnoCode, PenstockError } from '../errors.js';
import { addressSpace, type Place, type Segment } from '../memory/index.js';
import type { Domain } from './domain.js';
import type { MemberInfo, Session, SessionHome } from './hub-session.js';
import { startDomain } from './join.js';
import type { PeerInfo } from './link.js';
import type { LinkWire } from './link-wire.js';
import { Mailbox } from './mailbox.js';
import { OwnRegion, PeerRegion } from './region.js';
import { misbehaved, type Transport, type TransportEvents } from './transport.js';
import { NO_WAKE, type Wake } from './wake.js';

/** How often headers and mailboxes are looked at. */
const LOOK_MS = 20;
const PAGE_BYTES = 4096;
/** Mail that a peer does not take. */
const QUEUE_MAX = 1024;

export interface Mapped {
  readonly own: Segment;
  readonly peers: readonly Segment[];
}

export interface RegionsOptions {
  /** Of this domain, for the others: letters, digits, '.', '_' and '-', at most 64. */
  name: string;
  /** Number of this domain, whose slot its region begins; agreed with all others. */
  domain: number;
  /**
   * Maps the regions, once the domain has its place: its own writable (AddressSpace.import), the
   * others' for reading (AddressSpace.attach or admit). They are closed with the domain.
   */
  map: () => Mapped | Promise<Mapped>;
}

/**
 * Makes this process a domain by regions. Errors: DOMAIN_JOINED, ADDRESS_SPACE_IN_USE,
 * REGION_READ_ONLY, and those of mapping.
 */
export function joinRegions(options: RegionsOptions): Promise<Domain> {
  let session: RegionSession | undefined;
  return startDomain(
    'regions',
    options,
    { carve: (bytes, align) => session!.carve(bytes, align) },
    (home) => (session = new RegionSession(options, home)),
  );
}

interface Neighbour {
  readonly segment: Segment;
  life: { region: PeerRegion; wire: RegionWire } | null;
}

class RegionSession implements Session {
  readonly connected = true;
  readonly lasting = true;
  private readonly options: RegionsOptions;
  private readonly home: SessionHome;
  private own: { segment: Segment; region: OwnRegion } | null = null;
  private neighbours: Neighbour[] = [];
  private next = 0;
  private timer: NodeJS.Timeout | null = null;

  constructor(options: RegionsOptions, home: SessionHome) {
    this.options = options;
    this.home = home;
  }

  async join(): Promise<void> {
    const { domain, name, map } = this.options;
    addressSpace().join(domain);
    const { own, peers } = await map();
    try {
      const region = new OwnRegion(own, { name });
      this.own = { segment: own, region };
      this.next = region.heap.address;
      this.home.onPlace({ slot: domain, generation: region.generation });
      region.keepBeating();
    } catch (error) {
      for (const segment of [own, ...peers]) segment.close();
      throw error;
    }
    this.neighbours = peers.map((segment) => ({ segment, life: null }));
    this.timer = setInterval(() => this.look(), LOOK_MS).unref();
    this.look();
  }

  async members(): Promise<MemberInfo[]> {
    const { domain, name } = this.options;
    const others = this.neighbours.flatMap(({ life }) => (life === null ? [] : [life.region]));
    const self = { domain, name, generation: this.own!.region.generation };
    return [self, ...others]
      .map((one) => ({ ...infoOf(one), state: 'member' }))
      .sort((a, b) => a.slot - b.slot);
  }

  /** A part of the own region's heap; undefined when it is used up. */
  carve(bytes: number, align: number): Place | undefined {
    const { segment, region } = this.own!;
    const unit = Math.max(align, PAGE_BYTES);
    const start = Math.ceil(this.next / unit) * unit;
    if (start + bytes > region.heap.address + region.heap.bytes) return undefined;
    this.next = start + bytes;
    return { segment, offset: start - segment.address };
  }

  released(): void {
    // A region is its domain's for good: no slot becomes free.
  }

  close(): void {
    if (this.timer !== null) clearInterval(this.timer);
    this.timer = null;
    this.own?.region.close();
    for (const { segment } of this.neighbours) segment.close();
    this.neighbours = [];
  }

  private look(): void {
    const now = performance.now();
    for (const neighbour of this.neighbours) {
      const { life } = neighbour;
      if (life !== null) {
        life.wire.look();
        if (life.region.state(now) === 'gone') {
          neighbour.life = null;
          life.wire.die();
        }
        continue;
      }
      this.meet(neighbour, now);
    }
  }

  /** A life that began, or goes on, in a region that had none. */
  private meet(neighbour: Neighbour, now: number): void {
    try {
      const region = PeerRegion.read(neighbour.segment);
      // What a dead one left looks the same until its heart does not beat.
      if (region === null || !this.beats(region, now)) return;
      this.candidates.delete(neighbour.segment.address);
      const mailbox = new Mailbox(this.own!.region, region);
      const wire = new RegionWire(mailbox, neighbour.segment);
      neighbour.life = { region, wire };
      this.home.onPeer(infoOf(region), wire);
    } catch (error) {
      if (!(error instanceof PenstockError) || errnoCode(error) !== '') throw error;
      // A header that cannot be: nobody to talk with, until it changes.
    }
  }

  private readonly candidates = new Map<number, PeerRegion>();

  private beats(fresh: PeerRegion, now: number): boolean {
    const known = this.candidates.get(fresh.memory.address);
    if (known === undefined || known.generation !== fresh.generation) {
      this.candidates.set(fresh.memory.address, fresh);
      fresh.state(now);
      return false;
    }
    return known.state(now) === 'alive';
  }
}

function infoOf({
  domain,
  name,
  generation,
}: {
  domain: number;
  name: string;
  generation: number;
}): PeerInfo {
  return { slot: domain, generation, name, uid: 0, gid: 0, pid: 0 };
}

/** Between regions: a mailbox, and the memory that is mapped for good. */
class RegionWire implements LinkWire {
  readonly memory: Segment;
  readonly wakeFds = 0;
  private readonly mailbox: Mailbox;
  private transport: MailTransport | null = null;
  private dead: (() => void) | null = null;

  constructor(mailbox: Mailbox, memory: Segment) {
    this.mailbox = mailbox;
    this.memory = memory;
  }

  open(events: TransportEvents): Transport {
    this.transport = new MailTransport(this.mailbox, events);
    return this.transport;
  }

  pair(): { wake: Wake; fds: number[] } {
    return { wake: NO_WAKE, fds: [] };
  }

  adopt(): Wake {
    return NO_WAKE;
  }

  onDeath(dead: () => void): () => void {
    this.dead = dead;
    return () => (this.dead = null);
  }

  look(): void {
    this.transport?.look();
  }

  die(): void {
    const { dead } = this;
    this.dead = null;
    dead?.();
  }
}

/** Control messages by mailbox. */
class MailTransport implements Transport {
  private readonly mailbox: Mailbox;
  private readonly events: TransportEvents;
  private readonly queue: string[] = [];
  private open = true;

  constructor(mailbox: Mailbox, events: TransportEvents) {
    this.mailbox = mailbox;
    this.events = events;
  }

  send(message: object, fds: readonly number[] = []): void {
    if (fds.length > 0) throw new TypeError('no descriptors go from region to region');
    if (!this.open) return;
    this.queue.push(JSON.stringify(message));
    this.flush();
    if (this.queue.length > QUEUE_MAX) this.end(misbehaved('takes no messages'));
  }

  get unsent(): number {
    return this.queue.length;
  }

  receive(): void {
    while (this.open) {
      let text: string | null;
      try {
        text = this.mailbox.receive();
      } catch (error) {
        this.failed(error);
        return;
      }
      if (text === null) return;
      this.handle(text);
    }
  }

  look(): void {
    this.receive();
    this.flush();
  }

  close(): void {
    if (!this.open) return;
    this.flush();
    this.open = false;
    this.mailbox.close();
  }

  private handle(text: string): void {
    try {
      const message: unknown = parse(text);
      if (typeof message !== 'object' || message === null || Array.isArray(message)) {
        throw misbehaved('sent a message that is no JSON object');
      }
      this.events.onMessage(message as Record<string, unknown>, []);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      this.end(error);
    }
  }

  private flush(): void {
    try {
      while (this.open && this.queue.length > 0 && this.mailbox.send(this.queue[0]!)) {
        this.queue.shift();
      }
    } catch (error) {
      this.failed(error);
    }
  }

  private failed(error: unknown): void {
    if (!(error instanceof PenstockError)) throw error;
    this.end(error.code === 'PEER_GONE' ? null : error);
  }

  private end(error: PenstockError | null): void {
    if (!this.open) return;
    this.open = false;
    this.mailbox.close();
    this.events.onEnd(error);
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw misbehaved('sent a message that is no JSON');
  }
}
