// The hub's book: who has which slot, and whose slots are not free yet. It knows no sockets.
//
// A slot is one member's at a time. When a member is gone, its slot is in quarantine until every
// member that had a link with it has said that it holds nothing of it any more, or is gone itself.
// Generations never repeat, also over a restart that lost the state.

import { integers } from './fields.js';
import type { MemberInfo } from './hub-session.js';
import { startTimeOf, type HubState, type SavedMember } from './hub-state.js';
import { misbehaved, type Transport } from './transport.js';

export const SLOT_MAX = 255;
export const GENERATION_MAX = 2 ** 31;

export interface Member extends SavedMember {
  /** null: not back since the hub was restarted. */
  transport: Transport | null;
  pidfd: number;
  watch: number;
  /** Members it has a link with: their generations by slot. */
  links: Map<number, number>;
  /** Slots of members that have said already that they hold nothing of it. */
  acknowledged: Set<number>;
}

interface Leaving {
  generation: number;
  waiting: Set<number>;
}

export interface Credentials {
  readonly uid: number;
  readonly gid: number;
  readonly pid: number;
  readonly pidfd: number;
}

export class Members {
  private readonly bySlot = new Map<number, Member>();
  private readonly leaving = new Map<number, Leaving>();
  private nextGeneration: number;

  constructor(state: HubState) {
    this.nextGeneration = state.nextGeneration;
    for (const { slot, generation, waiting } of state.leaving) {
      this.leaving.set(slot, { generation, waiting: new Set(waiting) });
    }
  }

  [Symbol.iterator](): IterableIterator<Member> {
    return this.bySlot.values();
  }

  get isEmpty(): boolean {
    return this.bySlot.size === 0 && this.leaving.size === 0;
  }

  at(slot: number): Member | undefined {
    return this.bySlot.get(slot);
  }

  named(name: string): Member | undefined {
    for (const member of this.bySlot.values()) if (member.name === name) return member;
    return undefined;
  }

  isLeaving(slot: number): boolean {
    return this.leaving.has(slot);
  }

  /** The lowest free slot and a fresh generation; null when all slots are taken. */
  place(): { slot: number; generation: number } | null {
    let slot = 1;
    while (this.bySlot.has(slot) || this.leaving.has(slot)) slot++;
    if (slot > SLOT_MAX || this.nextGeneration >= GENERATION_MAX) return null;
    return { slot, generation: this.nextGeneration++ };
  }

  enter(saved: SavedMember, pidfd: number, transport: Transport | null): Member {
    const member: Member = {
      ...saved,
      transport,
      pidfd,
      watch: 0,
      links: new Map(),
      acknowledged: new Set(),
    };
    this.bySlot.set(member.slot, member);
    this.nextGeneration = Math.max(this.nextGeneration, member.generation + 1);
    return member;
  }

  /** Takes a member out; its slot stays in quarantine. Returns whom that is to be told. */
  remove(member: Member): Member[] {
    const { slot, generation, links, acknowledged } = member;
    this.bySlot.delete(slot);
    const told: Member[] = [];
    const waiting = new Set<number>();
    for (const other of this.bySlot.values()) {
      const knows = links.get(other.slot) === other.generation;
      if (!knows && other.links.get(slot) !== generation) continue;
      if (!acknowledged.has(other.slot)) waiting.add(other.slot);
      other.links.delete(slot);
      other.acknowledged.delete(slot);
      told.push(other);
    }
    this.leaving.set(slot, { generation, waiting });
    for (const other of this.leaving.values()) other.waiting.delete(slot);
    this.freeSlots();
    return told;
  }

  /** A member says that it holds nothing of a slot any more. */
  released(member: Member, slot: number, generation: number): void {
    const other = this.bySlot.get(slot);
    // It saw the death before this hub did.
    if (other?.generation === generation) other.acknowledged.add(member.slot);
    const leaving = this.leaving.get(slot);
    if (leaving?.generation !== generation) return;
    leaving.waiting.delete(member.slot);
    this.freeSlots();
  }

  /**
   * A member knows of a domain that this hub does not: its slot is not free before it says so.
   * False: it is another's already, or kept for another.
   */
  hold(member: Member, slot: number, generation: number): boolean {
    if (this.bySlot.has(slot)) return false;
    const leaving = this.leaving.get(slot);
    if (leaving === undefined) {
      this.leaving.set(slot, { generation, waiting: new Set([member.slot]) });
      return true;
    }
    if (leaving.generation !== generation) return false;
    leaving.waiting.add(member.slot);
    return true;
  }

  /** Slots and generations of the gone that a member has not let go of. */
  heldBy(slot: number): { slot: number; generation: number }[] {
    return [...this.leaving]
      .filter(([, { waiting }]) => waiting.has(slot))
      .map(([gone, { generation }]) => ({ slot: gone, generation }));
  }

  list(): MemberInfo[] {
    const members = [...this.bySlot.values()].map((member) => ({
      slot: member.slot,
      generation: member.generation,
      name: member.name,
      uid: member.uid,
      gid: member.gid,
      pid: member.pid,
      state: member.transport === null ? 'missing' : 'member',
    }));
    const leaving = [...this.leaving].map(([slot, { generation }]) => ({
      slot,
      generation,
      name: '',
      uid: 0,
      gid: 0,
      pid: 0,
      state: 'leaving',
    }));
    return [...members, ...leaving].sort((a, b) => a.slot - b.slot);
  }

  state(): HubState {
    return {
      version: 1,
      nextGeneration: this.nextGeneration,
      members: [...this.bySlot.values()].map(
        ({ slot, generation, name, uid, gid, pid, startTime, names, uids }) => ({
          slot,
          generation,
          name,
          uid,
          gid,
          pid,
          startTime,
          ...(names === undefined ? {} : { names }),
          ...(uids === undefined ? {} : { uids }),
        }),
      ),
      leaving: [...this.leaving].map(([slot, { generation, waiting }]) => ({
        slot,
        generation,
        waiting: [...waiting],
      })),
    };
  }

  private freeSlots(): void {
    for (const [slot, { waiting }] of this.leaving) {
      if (waiting.size === 0) this.leaving.delete(slot);
    }
  }
}

/** What a domain says of itself, and the kernel of it. */
export function describe(
  message: Record<string, unknown>,
  { uid, gid, pid }: Credentials,
  name: string,
  place: { slot: number; generation: number },
): SavedMember {
  const { names } = message;
  if (
    names !== undefined &&
    (!Array.isArray(names) || names.length > 1024 || !names.every((n) => typeof n === 'string'))
  ) {
    throw misbehaved('shares with names that cannot be any');
  }
  return {
    ...place,
    name,
    uid,
    gid,
    pid,
    startTime: startTimeOf(pid),
    ...(names === undefined ? {} : { names: names as string[] }),
    ...(message['uids'] === undefined ? {} : { uids: integers(message, 'uids', 1024) }),
  };
}

/** Whether each lets the other map its memory. */
export function agree(a: SavedMember, b: SavedMember): boolean {
  const lets = (who: SavedMember, other: SavedMember): boolean =>
    (who.names?.includes(other.name) ?? true) && (who.uids?.includes(other.uid) ?? true);
  return lets(a, b) && lets(b, a);
}
